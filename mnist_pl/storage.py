"""Files and paths: durable writes, locked folders, short paths, words of a command line, safe text, tables.

Knows nothing of the project.
"""

import csv
import errno
import io
import os
import re
import shlex
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import to_absolute_path
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def write(path: Path, content: bytes | memoryview) -> None:
    """Writes beside the target, flushes to disk, renames: whatever happens, the file under the final name is whole.

    Raises OSError where it cannot be written; what was there before is untouched.
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
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system that has no such call
            raise


def remove_parts(folder: Path) -> None:
    """Removes what a process left that was killed while it wrote."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


LOCK = ".lock"  # in a folder: who works in it, and that it still does
PROBED = 0.2  # seconds; another process may just look whether there is a lock


class FolderLock:
    """A folder is one process's, for as long as it lives: the system releases the lock of one that is killed.

    By flock, which reaches across the machines of an NFS mount on Linux (unless mounted with `nolock`). Raises
    BlockingIOError where another process has it, and says which one.
    """

    def __init__(self, folder: Path, whose: str = "") -> None:
        path = folder / LOCK
        self.path, self.kept, self.made = path, False, not folder.exists()
        with suppress(OSError):
            self.before: bytes | None = None
            self.before = path.read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path, thread_local=False)
        try:
            self._lock.acquire(timeout=PROBED, poll_interval=PROBED / 10)
        except Timeout:
            raise BlockingIOError(f"another process is at work there: {_owner(path)}") from None
        with suppress(OSError):  # a full disk; Windows, where the lock is one on the file's content
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}{whose}\n", encoding="utf-8")

    def keep(self) -> None:
        """From here on, the folder is this process's to change."""
        self.kept = True

    def release(self) -> None:
        """Leaves a folder that was not kept as it was."""
        if self._lock.is_locked and not self.kept:
            with suppress(OSError):
                self.path.unlink() if self.before is None else self.path.write_bytes(self.before)
        self._lock.release()
        if self.made and not self.kept:
            with suppress(OSError):  # it is not empty
                self.path.parent.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process, here or on another machine, is at work in the folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with FileLock(folder / LOCK, blocking=False):
            return False
    except OSError as error:  # others, of a folder that can only be read
        return isinstance(error, Timeout)


def _owner(path: Path) -> str:
    with suppress(OSError):  # Windows lets nobody else read it
        return one_line(path.read_text(encoding="utf-8", errors="replace")) or "it has just begun"
    return "which one cannot be read"


def as_typed(path: str | os.PathLike[str]) -> Path:
    """A path of the command line: `~` is the home folder, and hydra.job.chdir=true has not moved what is relative."""
    typed_in, path = Path(to_absolute_path("")), Path(os.path.expanduser(path))
    return path if typed_in == Path.cwd() else typed_in / path


def short_path(path: str | os.PathLike[str]) -> str:
    """Relative to the folder where the command was typed, where that is shorter to type."""
    typed_in, path = Path(to_absolute_path("")), Path(path)
    return str(path.relative_to(typed_in)) if path.is_relative_to(typed_in) else str(path)


def new_file(key: str, typed: str) -> Path:
    """The path that the setting `key` names. Raises ValueError where it exists, or where nothing can be written."""
    path, said = as_typed(typed), f"{key}={printable(typed)}"
    if path.is_dir():
        raise ValueError(f"{said}: is a folder; name a file in it")
    if os.path.lexists(path):
        raise ValueError(f"{said}: exists, and is not replaced; name another file, or remove it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"{said}: nothing can be written in {printable(short_path(folder))}; name another folder")
    return path


def as_word(key: str, path: str | os.PathLike[str] | list[str]) -> str:
    """`key=path`, to be pasted into a shell: quoted for that and for Hydra, where the path needs it. Or `key=[A,B]`."""

    def literal(path: str | os.PathLike[str]) -> str:
        text = short_path(path)
        if text in ("last", "best", "null") or text.startswith("~"):  # which would stand for something else
            text = os.path.abspath(text)
        return text if read_value(text) == text and "$" not in text else quoted(text)

    value = f"[{','.join(map(literal, path))}]" if isinstance(path, list) else literal(path)
    return in_shell(f"{key}={value}")


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


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its head, which can be read as they are, too."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def csv_text(rows: Iterable[Iterable[Any]], end: str = "\r\n") -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows(rows)
    return text.getvalue()
