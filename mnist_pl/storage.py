"""Files and paths: durable writes, short paths, text that is safe to print. Knows nothing of the project."""

import errno
import os
from contextlib import suppress
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes beside the target, flushes to disk, renames: whatever happens, the file under the final name is whole.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            _flush(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError):  # a signal
            raise
        reason = error.strerror or str(error)
        raise OSError(f"{path}: cannot be written ({reason}); what was there before is untouched") from error
    with suppress(OSError):  # the new name too; not every system can (SMB, FUSE, Windows)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _flush(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOSYS,
            errno.ENOTSUP,
        ):  # what a file system says that has no such call
            raise


def remove_parts(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


def short_path(path: str | os.PathLike[str]) -> str:
    """Relative to the current folder where that is shorter to type."""
    path = Path(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def printable(text: object) -> str:
    """Without terminal codes and line breaks, which file names and error messages may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
