"""The files, what can be wrong with them, and their download."""

import fcntl
import gzip
import hashlib
import os
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, PROCESSES, Run, Train, needs_mnist, one_line
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision.datasets import MNIST

from mnist_pl.data import MNISTDataModule, files

NAMES = [name for name, _ in MNIST.resources]
CLOSED = "http://127.0.0.1:1"


@needs_mnist
def test_our_reading_is_torchvisions(tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    folder = files.raw_folder("mnist", MNIST_ROOT)
    for name in NAMES:
        content = gzip.decompress((folder / name).read_bytes())
        (tmp_path / "MNIST" / "raw" / name.removesuffix(".gz")).write_bytes(content)
    (images, labels), (test_images, test_labels) = files.read("mnist", folder)
    train, test = MNIST(tmp_path), MNIST(tmp_path, train=False)
    assert torch.equal(images, train.data) and torch.equal(labels, train.targets)
    assert torch.equal(test_images, test.data) and torch.equal(test_labels, test.targets)
    extracted = files.read("mnist", files.fetch("mnist", tmp_path))  # the files that torchvision users have
    assert torch.equal(extracted[0][0], images)
    assert abs(float(images.float().mean() / 255) - 0.1307) < 1e-4


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@cache
def contents() -> dict[str, bytes]:
    """Of a data set of MNIST's form, by the names of its .gz files."""
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (60, 28, 28)), random.integers(0, 10, 60)]
    arrays += [random.integers(0, 256, (20, 28, 28)), random.integers(0, 10, 20)]
    return {name: idx(array) for name, array in zip(NAMES, arrays, strict=True)}


@cache
def packed() -> dict[str, bytes]:
    return {name: gzip.compress(content, mtime=0) for name, content in contents().items()}


def md5s(files: dict[str, bytes]) -> list[str]:
    return [hashlib.md5(files[name]).hexdigest() for name in NAMES]


class Answer(BaseHTTPRequestHandler):
    """To /BEHAVIOUR/NAME, by the method of that name."""

    def do_GET(self) -> None:
        _, behaviour, name = self.path.split("/")
        self.server.asked.append((behaviour, name))
        with suppress(ConnectionError):  # we are left
            getattr(self, behaviour)(packed()[name])

    def log_message(self, *_: Any) -> None:
        pass

    def begin(self, **headers: Any) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def good(self, content: bytes) -> None:
        self.begin(Content_Length=len(content))
        self.wfile.write(content)

    def late(self, content: bytes) -> None:
        """Good, but with a long wait in the middle."""
        self.begin(Content_Length=len(content))
        self.wfile.write(content[: len(content) // 2])
        self.server.over.wait(9)
        self.wfile.write(content[len(content) // 2 :])

    def forbidden(self, _: bytes) -> None:
        self.send_error(403)

    def missing(self, _: bytes) -> None:
        self.send_error(404)

    def broken(self, _: bytes) -> None:
        self.send_error(500)

    def redirect_loop(self, _: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", self.path)
        self.end_headers()

    def silence(self, _: bytes) -> None:
        self.server.over.wait(9)

    def hang_up(self, _: bytes) -> None:
        pass

    def no_http(self, _: bytes) -> None:
        self.wfile.write(b"\x00\xff\n" * 99)

    def drip(self, content: bytes) -> None:
        while content and not self.server.over.wait(0.02):
            self.wfile.write(content[:1])
            content = content[1:]

    def trickle(self, content: bytes) -> None:
        self.begin(Content_Length=len(content))
        self.drip(content)

    def header_without_end(self, _: bytes) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 999)

    def chunk_without_end(self, _: bytes) -> None:
        self.begin(Transfer_Encoding="chunked")
        self.drip(b"0" * 999)

    def half_then_silence(self, content: bytes) -> None:
        self.half_then_end(content)
        self.wfile.flush()
        self.server.over.wait(9)

    def half_then_end(self, content: bytes) -> None:
        self.begin(Content_Length=len(content))
        self.wfile.write(content[: len(content) // 2])

    def wrong_content(self, content: bytes) -> None:
        self.good(content[:-9] + b"\0" + content[-8:])

    def endless(self, _: bytes) -> None:
        self.begin()
        while not self.server.over.is_set():
            self.server.sent += self.wfile.write(b"x" * 65536)

    def steady(self, _: bytes) -> None:
        """Fast enough at any moment, and never done."""
        self.begin()
        while not self.server.over.wait(0.02):
            self.wfile.write(b"x" * 4096)


class Server(ThreadingHTTPServer):
    """A real one; `asked` lists what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []
        self.sent = 0
        self.over = threading.Event()

    def mirror(self, behaviour: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.over.set()
        server.shutdown()


def replace_mnist(sums: list[str], extracted: list[str], mirrors: list[str]) -> None:
    resources = list(zip(NAMES, sums, strict=True))
    files.SOURCES["mnist"] = type("MNIST", (MNIST,), {"resources": resources, "mirrors": mirrors})
    files.EXTRACTED["mnist"] = extracted


@pytest.fixture
def small(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small data set stands in for MNIST, and the server for its mirrors."""
    for table in (files.SOURCES, files.EXTRACTED):
        monkeypatch.setitem(table, "mnist", table["mnist"])  # restored afterwards
    replace_mnist(md5s(packed()), md5s(contents()), [server.mirror("good")])


def lay(root: Path, extracted: bool = False) -> Path:
    """The folder with the four good files."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, content in (contents() if extracted else packed()).items():
        (folder / (name.removesuffix(".gz") if extracted else name)).write_bytes(content)
    return folder


def is_good(root: Path) -> bool:
    """Whether a run reads what it should."""
    module = MNISTDataModule("mnist", str(root), val_size=0)
    module.setup("fit")
    return all(
        idx(part.numpy()) == contents()[name]
        for part, name in zip((*module.splits["train"], *module.splits["test"]), NAMES, strict=True)
    )


def left(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


MENDED = pytest.mark.promise(
    "damaged data files are noticed before training, and mended",
    "each of 4 files, .gz and extracted: truncated, one bit flipped, emptied, an HTML page, swapped",
)
MIRRORS = pytest.mark.promise(
    "whatever a mirror does, the next is tried, or one line names each and its reason",
    "a real web server that answers in 15 bad ways, on its own and all together",
)
AT_ONCE = pytest.mark.promise(
    "processes that prepare one folder at once download once", "three and eight processes; one of four killed"
)
NO_PLACE = pytest.mark.promise(
    "a folder that cannot be written is one clear line, and no harm", "a read-only mount, a full disk, a held lock"
)
FUZZED = pytest.mark.promise(
    "no data file, however broken, is read wrongly or fills the memory", "hypothesis: mutated IDX and .gz files"
)
BAD = ["forbidden", "missing", "broken", "redirect_loop", "silence", "hang_up", "no_http", "trickle"]
BAD += ["header_without_end", "chunk_without_end", "half_then_silence", "half_then_end", "wrong_content", "endless"]
BAD += ["steady"]


@MENDED
@pytest.mark.parametrize("extracted", [False, True], ids=["gz", "extracted"])
@pytest.mark.parametrize("harm", ["truncate", "flip a bit", "empty", "swap", "web page"])
@pytest.mark.parametrize("number", range(4))
def test_a_damaged_file_is_noticed_and_mended(
    small: None, server: Server, tmp_path: Path, harm: str, number: int, extracted: bool
) -> None:
    folder = lay(tmp_path, extracted)
    suffix = "" if extracted else ".gz"
    victim, other = (folder / NAMES[place % 4].replace(".gz", suffix) for place in (number, number + 2))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    harmed = {
        "truncate": bytes(content[: len(content) // 2]),
        "flip a bit": bytes(content),
        "empty": b"",
        "swap": other.read_bytes(),  # training labels under the test labels' name, and so on
        "web page": b"<html>hello</html>",
    }
    victim.write_bytes(harmed[harm])
    without = MNISTDataModule("mnist", str(tmp_path), fallback="digits", mirrors=[f"{CLOSED}/"])
    for attempt in (without.prepare_data, lambda: without.setup("fit")):
        with pytest.raises(OSError, match=f"{victim.name} is damaged") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert victim.read_bytes() == harmed[harm]
    MNISTDataModule("mnist", str(tmp_path)).prepare_data()
    assert server.asked == [("good", NAMES[number])]
    assert is_good(tmp_path)


@pytest.mark.parametrize(
    "harmed",
    [contents()[NAMES[0]][:-1], b"", b"<html>hello</html>", contents()[NAMES[1]], idx(np.zeros((60, 14, 56)))],
    ids=["truncated", "empty", "web page", "labels", "other sides"],
)
def test_extracted_files_without_a_known_checksum_are_whole_images(small: None, tmp_path: Path, harmed: bytes) -> None:
    del files.EXTRACTED["mnist"]
    folder = lay(tmp_path, extracted=True)
    files.fetch("mnist", tmp_path, [])
    folder.joinpath(NAMES[0]).with_suffix("").write_bytes(harmed)
    with pytest.raises(OSError, match="images-idx3-ubyte is damaged: it is not a whole IDX file of images"):
        files.fetch("mnist", tmp_path, [])
    folder.joinpath(NAMES[0]).with_suffix("").write_bytes(contents()[NAMES[2]])
    with pytest.raises(OSError, match="images and labels do not belong together"):
        is_good(tmp_path)


@pytest.mark.parametrize("extracted", [False, True], ids=["gz", "extracted"])
def test_a_giant_file_is_not_even_read(small: None, tmp_path: Path, extracted: bool) -> None:
    giant = next(lay(tmp_path, extracted).glob("train-images*"))
    os.truncate(giant, 1 << 40)  # takes no room on the disk
    with pytest.raises(OSError, match=f"{giant.name} is damaged: it is larger"):
        files.fetch("mnist", tmp_path, [])


def test_missing_files_are_downloaded(small: None, server: Server, tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / NAMES[1]).write_bytes(packed()[NAMES[1]])
    (raw / f".{NAMES[1]}.part").write_bytes(b"left by a killed process")
    assert files.fetch("mnist", tmp_path) == raw
    assert left(raw) == packed() and is_good(tmp_path)
    files.fetch("mnist", tmp_path)
    assert len(server.asked) == 3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(files, "FILE_SECONDS", 0.5)
    monkeypatch.setattr(files, "LARGEST", 1 << 20)


@MIRRORS
@pytest.mark.parametrize("behaviour", BAD)
def test_after_a_bad_mirror_the_next_is_tried(
    small: None, impatient: None, server: Server, tmp_path: Path, behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if behaviour != "steady":  # the others are left for what they do, before a file's time is over
        monkeypatch.setattr(files, "FILE_SECONDS", 300.0)
    mirrors = [server.mirror(behaviour), server.mirror("good")]
    began = time.monotonic()
    MNISTDataModule("mnist", str(tmp_path), mirrors=mirrors).prepare_data()
    assert left(tmp_path / "MNIST" / "raw") == packed() and is_good(tmp_path)
    assert [ask for ask in server.asked if ask[0] == "good"] == [("good", name) for name in NAMES]
    assert {name for kind, name in server.asked if kind == behaviour} == {NAMES[0]}, "it was asked again"
    assert time.monotonic() - began < 30, "it was waited for"
    assert server.sent < 16 << 20, "more was taken than a file can have"


@MIRRORS
def test_bad_mirrors_alone_are_named_with_their_reasons(
    small: None, impatient: None, server: Server, tmp_path: Path
) -> None:
    mirrors = [*map(server.mirror, BAD), f"{CLOSED}/", "nonsense://here"]
    with pytest.raises(FileNotFoundError, match="not downloaded") as caught:
        MNISTDataModule("mnist", str(tmp_path), mirrors=mirrors).prepare_data()
    message = str(caught.value)
    assert "\n" not in message
    assert all(f"{mirror}: " in message for mirror in mirrors)
    for reason in ("403", "404", "500", "loop", "no answer within", "only", "wrong content", "sends more", "refused"):
        assert reason in message
    assert left(tmp_path / "MNIST" / "raw") == {}


def _prepare(root: Path, sums: list[str], extracted: list[str], mirror: str, barrier: Barrier | None = None) -> None:
    replace_mnist(sums, extracted, [])
    if barrier is not None:
        barrier.wait(60)
    MNISTDataModule("mnist", str(root), mirrors=[mirror]).prepare_data()
    assert is_good(root)


@AT_ONCE
@pytest.mark.parametrize("count", [3, pytest.param(8, marks=pytest.mark.long)])
def test_processes_at_once_download_once(small: None, server: Server, tmp_path: Path, count: int) -> None:
    barrier = PROCESSES.Barrier(count)
    arguments = (tmp_path, md5s(packed()), md5s(contents()), server.mirror("good"), barrier)
    processes = [PROCESSES.Process(target=_prepare, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * count
    assert server.asked == [("good", name) for name in NAMES]
    assert left(tmp_path / "MNIST" / "raw") == packed()


@AT_ONCE
def test_the_others_continue_when_the_one_that_downloads_is_killed(small: None, server: Server, tmp_path: Path) -> None:
    sums = md5s(packed()), md5s(contents())
    killed = PROCESSES.Process(target=_prepare, args=(tmp_path, *sums, server.mirror("late")))
    killed.start()
    while not server.asked:
        killed.join(0.02)
    others = [PROCESSES.Process(target=_prepare, args=(tmp_path, *sums, server.mirror("good"))) for _ in range(3)]
    for process in others:
        process.start()
    others[0].join(1)
    assert server.asked == [("late", NAMES[0])], "they wait"
    killed.kill()
    for process in (killed, *others):
        process.join(60)
    assert [process.exitcode for process in (killed, *others)] == [-9, 0, 0, 0]
    assert server.asked[1:] == [("good", name) for name in NAMES]
    assert left(tmp_path / "MNIST" / "raw") == packed()


Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a file system in memory, or changes how it is mounted; the options are those of `mount`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
        if done.returncode:
            pytest.skip("mounting is not permitted here")
        return disk

    yield mount
    subprocess.run(["umount", disk], capture_output=True)


@NO_PLACE
def test_a_read_only_folder(small: None, mount: Mount) -> None:
    disk = mount("size=1m")
    lay(disk / "whole")
    harmed = lay(disk / "harmed") / NAMES[0]
    harmed.write_bytes(b"")
    (disk / "empty" / "MNIST" / "raw").mkdir(parents=True)
    mount("remount,ro")
    MNISTDataModule("mnist", str(disk / "whole")).prepare_data()
    assert is_good(disk / "whole")
    for name, problem in {"empty": "lacks train", "nowhere": "lacks train", "harmed": "is damaged"}.items():
        with pytest.raises(OSError, match=f"{problem}.*Read-only file system.*Put the four .gz files") as caught:
            MNISTDataModule("mnist", str(disk / name)).prepare_data()
        assert "\n" not in str(caught.value)


@NO_PLACE
def test_a_full_disk(small: None, mount: Mount) -> None:
    disk = mount("size=16k")
    with pytest.raises(FileNotFoundError, match="not downloaded.*No space left on device.*or set MNIST_ROOT") as caught:
        MNISTDataModule("mnist", str(disk)).prepare_data()
    assert "\n" not in str(caught.value)
    assert left(disk / "MNIST" / "raw") == {}


@NO_PLACE
def test_a_lock_that_is_never_released(small: None, impatient: None, server: Server, tmp_path: Path) -> None:
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    with open(tmp_path / "MNIST" / "raw" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(FileNotFoundError, match=r"another process has held .*\.lock for 0.5 s") as caught:
            files.fetch("mnist", tmp_path)
    assert "\n" not in str(caught.value) and not server.asked


EXTREMES = [value.to_bytes(4, "big") for value in (0, 1, 28, 2**16, 2**31 - 1, 2**31, 2**32 - 28, 2**32 - 1)]


@cache
def bomb() -> bytes:
    """64 MiB in 64 KB whose last bytes claim that they are 16 bytes."""
    return gzip.compress(bytes(64 << 20))[:-4] + (16).to_bytes(4, "little")


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, overwritten, with bytes put in, or with an extreme value in its header; once, twice, or not at all."""
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(content)) | st.integers(0, min(20, len(content))))
        some = draw(st.binary(min_size=1, max_size=9))
        word = 4 * draw(st.integers(0, 3))
        changes = {
            "cut": content[:place],
            "overwritten": content[:place] + some + content[place + len(some) :],
            "put in": content[:place] + some + content[place:],
            "extreme": content[:word] + draw(st.sampled_from(EXTREMES)) + content[word + 4 :],
        }
        content = changes[draw(st.sampled_from(sorted(changes)))]
    return content


@st.composite
def broken_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's name, .gz or extracted, and its content."""
    name = draw(st.sampled_from(NAMES))
    content = draw(mutated(contents()[name]))
    if draw(st.booleans()):
        return name.removesuffix(".gz"), content
    whole = gzip.compress(content, 1, mtime=0)
    size = st.sampled_from([*EXTREMES, (47 << 20).to_bytes(4, "little")])
    return name, draw(
        st.just(whole)
        | mutated(whole)
        | size.map(lambda size: whole[:-4] + size)
        | st.just(whole + whole)
        | st.just(whole + gzip.compress(b""))
        | st.just(bomb())
    )


@FUZZED
def test_broken_files_are_refused_or_read_right(
    small: None, tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    folder = lay(tmp_path)
    outcomes = {"refused": 0, "read": 0}

    @settings(
        max_examples=int(os.environ.get("FUZZ", 200)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(broken_files(), st.booleans())
    def look(broken: tuple[str, bytes], checksum_fits: bool) -> None:
        name, content = broken
        number = NAMES.index(name if name.endswith(".gz") else f"{name}.gz")
        (folder / NAMES[number]).unlink()
        (folder / name).write_bytes(content)
        sums, extracted = md5s(packed()), md5s(contents())
        if checksum_fits:
            (sums if name.endswith(".gz") else extracted)[number] = hashlib.md5(content).hexdigest()
        replace_mnist(sums, extracted, [])
        tracemalloc.start()
        try:
            _, problem = files.locate("mnist", tmp_path)
            if problem is not None:
                raise problem
            train, test = files.read("mnist", folder)
            for images, labels in (train, test):
                assert images.dtype == torch.uint8 and images.shape == (len(labels), 28, 28)
                assert labels.dtype == torch.int64 and labels.dim() == 1
                assert len(labels) and labels.min() >= 0 and labels.max() <= 9
            truth = gzip.decompress(content) if name.endswith(".gz") else content
            assert idx((*train, *test)[number].numpy()) == truth
            assert checksum_fits or truth == contents()[NAMES[number]]
            outcomes["read"] += 1
        except OSError as error:
            assert "\n" not in str(error)
            assert name in str(error) or "belong together" in str(error)
            outcomes["refused"] += 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            (folder / name).unlink()
            (folder / NAMES[number]).write_bytes(packed()[NAMES[number]])
        assert peak < files.LARGEST + (8 << 20)

    look()
    assert min(outcomes.values()) > 0
    record_property("tried", sum(outcomes.values()))


@needs_mnist
def test_a_damaged_mnist_file_stops_a_run(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in NAMES:
        (folder / name).symlink_to(files.raw_folder("mnist", MNIST_ROOT).resolve() / name)
    content = (folder / NAMES[2]).read_bytes()
    (folder / NAMES[2]).unlink()
    (folder / NAMES[2]).write_bytes(content[:-1000])
    line = one_line(run("train.py"))
    assert f"{NAMES[2]} is damaged" in line and "MNIST_ROOT" in line


@pytest.mark.parametrize(
    ("words", "mirror"),
    [
        (["experiment=seed_mlp"], "https://"),
        (["data.fallback=null", f"data.mirrors=[{CLOSED}/]"], f"{CLOSED}/: "),
        (["data=kmnist"], "http://"),
    ],
)
def test_without_mnist_and_fallback_a_run_fails(
    train_here: Train, words: list[str], mirror: str, tmp_path: Path
) -> None:
    expected = f"^error: .* lacks train-images-idx3-ubyte.gz.* not downloaded \\({mirror}.*MNIST_ROOT"
    with pytest.raises(SystemExit, match=expected) as caught:
        train_here(*words)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("**/checkpoints"))


def test_the_download_command(run: Run) -> None:
    command = "mnist_pl/data/__main__.py"
    assert "not downloaded (https://" in one_line(run(command))
    assert "there is no data set 'cifar'" in one_line(run(command, "cifar"))
    ended = run(command, "--help")
    assert ended.code == 0 and "usage: python -m mnist_pl.data" in ended.out and "fashion_mnist" in ended.out


@needs_mnist
def test_the_download_command_finds_files_laid_by_hand(run: Run) -> None:
    ended = run("mnist_pl/data/__main__.py", MNIST_ROOT=MNIST_ROOT)
    assert ended.code == 0 and "60,000 training and 10,000 test images, verified, in" in ended.out
