"""Durable writes, short paths, text that is safe to print."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnist_pl.storage import one_line, printable, remove_parts, short_path, write


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "last.ckpt"
    for content in (b"first", b"", memoryview(b"third")):
        write(path, content)
        assert path.read_bytes() == bytes(content)
        assert os.listdir(path.parent) == ["last.ckpt"]


def test_it_is_on_the_disk_before_it_has_its_name_and_its_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is flushed, and what the name stood for at that moment."""
    flushed: list[tuple[str, bytes]] = []
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"before")
    flush = os.fsync

    def fsync(number: int) -> None:
        flush(number)
        name = os.readlink(f"/proc/self/fd/{number}")
        content = b"folder" if os.path.isdir(name) else Path(name).read_bytes()
        flushed.append((content.decode(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    write(path, b"after")
    assert flushed == [("after", b"before"), ("folder", b"after")]


def full(number: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fail(*_: Any) -> None:
    raise OSError("the share is gone")


@pytest.mark.parametrize(
    ("name", "replacement", "reason"),
    [("fsync", full, "No space left on device"), ("rename", fail, "the share is gone")],
    ids=["full disk", "no rename"],
)
def test_what_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, replacement: Callable[..., None], reason: str
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"before")
    monkeypatch.setattr(*((os, "fsync") if name == "fsync" else (Path, "replace")), replacement)
    with pytest.raises(OSError) as caught:
        write(path, b"after")
    assert str(caught.value) == f"{path}: cannot be written ({reason}); what was there before is untouched"
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["last.ckpt"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(OSError, match=r"last\.ckpt: cannot be written \((Not a directory|File exists)\)"):
        write(tmp_path / "checkpoints" / "last.ckpt", b"")
    assert (tmp_path / "checkpoints").read_text() == "a file"


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flush = os.fsync

    def fsync(number: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{number}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "last.ckpt", b"whole")
    assert (tmp_path / "last.ckpt").read_bytes() == b"whole"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    for name in (".last.ckpt.123.part", "last.ckpt", "my.part", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".other.9.part").touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "below", "last.ckpt", "my.part"]
    assert os.listdir(tmp_path / "below") == [".other.9.part"]


def test_paths_are_short_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert short_path(tmp_path / "here" / "outputs" / "run") == os.path.join("outputs", "run")
    assert short_path(str(tmp_path / "here")) == "."
    for elsewhere in (tmp_path / "there", tmp_path / "hereafter", Path("outputs/run")):
        assert short_path(elsewhere) == str(elsewhere)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("木 ß ± 3.png", "木 ß ± 3.png"),
        ("a\nb\x1b[2J\x07.png", r"a\nb\x1b[2J\x07.png"),
        ("\u202egnp.\udcff", r"\u202egnp.\udcff"),
        (Path("a\rb"), r"a\rb"),
        (ValueError("broken\there"), r"broken\there"),
    ],
)
def test_printable_text_has_no_codes_and_no_line_breaks(text: object, printed: str) -> None:
    assert printable(text) == printed and printed.isprintable()


def test_one_line_joins_lines() -> None:
    assert one_line(" first\n    second\t\x1b[2Jthird\r\n") == r"first second \x1b[2Jthird"
