"""Files and paths: durable writes, short paths, words of a command line, text that is safe to print.

Knows nothing of the project.
"""

import errno
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


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


def as_typed(path: str | os.PathLike[str]) -> Path:
    """A path of the command line: `~` is the home folder, and hydra.job.chdir=true has not moved what is relative."""
    typed_in, path = Path(to_absolute_path("")), Path(os.path.expanduser(path))
    return path if typed_in == Path.cwd() else typed_in / path


def short_path(path: str | os.PathLike[str]) -> str:
    """Relative to the folder where the command was typed, where that is shorter to type."""
    typed_in, path = Path(to_absolute_path("")), Path(path)
    return str(path.relative_to(typed_in)) if path.is_relative_to(typed_in) else str(path)


def as_word(key: str, path: str | os.PathLike[str]) -> str:
    """`key=path`, to be pasted into a shell: quoted for that and for Hydra, where the path needs it."""
    text = short_path(path)
    if text in ("last", "best", "null") or text.startswith("~"):  # which would stand for something else
        text = os.path.abspath(text)
    return in_shell(f"{key}={text if read_value(text) == text and '$' not in text else quoted(text)}")


def in_shell(text: str) -> str:
    """As a shell takes it literally, on one line, which `one_line` leaves as it is."""
    if text == one_line(text):
        return shlex.quote(text)
    plain = (
        c if c.isprintable() and c not in " \\'" else "".join(map(r"\x{:02x}".format, os.fsencode(c))) for c in text
    )
    return f"$'{''.join(plain)}'"


def quoted(text: str | os.PathLike[str]) -> str:
    """As Hydra takes it literally, whatever is in it. Backslashes count before a quote, and before `${`, alone."""
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", os.fspath(text))
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), literal) + "'"


def read_value(value: str) -> Any:
    """What Hydra takes the value of a command line's word for; None, where it cannot be read."""
    with suppress(HydraException, OmegaConfBaseException):
        read = OverridesParser.create().parse_override(f"key={value}")
        if read.is_sweep_override():
            return read.value()
        resolved: Any = OmegaConf.to_container(OmegaConf.create([read.value()]), resolve=True)
        return resolved[0]
    return None


def printable(text: object) -> str:
    """Without terminal codes and line breaks, which file names and error messages may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def one_line(text: object) -> str:
    return printable(" ".join(str(text).split()))
