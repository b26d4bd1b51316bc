"""The files of MNIST and its kin on disk: found, verified, read, and downloaded where they are missing or damaged."""

import hashlib
import logging
import math
import os
import textwrap
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from mnist_pl.storage import as_typed, remove_parts, write

log = logging.getLogger(__name__)

SOURCES: dict[str, type[MNIST]] = {"mnist": MNIST, "fashion_mnist": FashionMNIST, "kmnist": KMNIST}
# MD5 of what MNIST's four .gz files hold, in torchvision's order, computed from files with torchvision's checksums.
# The other data sets' are not known here: of their extracted files, only the structure is checked.
EXTRACTED = {
    "mnist": [
        "6bbc9ace898e44ae57da46a324031adb",
        "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea",
        "27ae3e4e09519cfbb04c329615203637",
    ]
}
ANSWER_SECONDS = 8.0  # for a mirror to begin its answer, and between two reads: two mirrors, under twenty seconds
SLOWEST = 20_000  # bytes a second, on average, that a mirror must send after that
FILE_SECONDS = 300.0  # for one file from one mirror; for another process to be done
LARGEST = 48 << 20  # bytes of any file, packed or not: 60,000 images have 45 MiB

Split = tuple[Tensor, Tensor]  # images (N, 28, 28) uint8, labels (N,) int64


def default_folder() -> str:
    """What holds the data sets' folders: MNIST_ROOT where it is set, else `data/` below the current folder."""
    return os.environ.get("MNIST_ROOT") or "data"


def raw_folder(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    return as_typed(data_dir or default_folder()) / SOURCES[dataset].__name__ / "raw"


def locate(dataset: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[Path, OSError | None]:
    """The folder of the four files, and what is wrong: FileNotFoundError where some are only missing, or OSError."""
    folder = raw_folder(dataset, data_dir)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda sums: _check(folder / sums[0], *sums[1:]), _sums(dataset)))
    damaged = [str(problem) for problem in found if problem and not isinstance(problem, FileNotFoundError)]
    if damaged:
        return folder, OSError("; ".join(damaged))
    missing = [str(problem) for problem in found if problem]
    if missing:
        return folder, FileNotFoundError(f"{folder} lacks {', '.join(missing)}")
    return folder, None


def _sums(dataset: str) -> list[tuple[str, str, str | None]]:
    """Of each of the four files: the .gz file's name, its MD5, and that of what it holds, where known."""
    resources = vars(SOURCES[dataset])["resources"]  # not what it inherits: EMNIST would be read from MNIST's files
    extracted = EXTRACTED.get(dataset, [None] * len(resources))
    return [(name, md5, inner) for (name, md5), inner in zip(resources, extracted, strict=True)]


def _check(path: Path, md5: str, extracted_md5: str | None) -> OSError | None:
    """`path` is a .gz file. Its extracted twin, as torchvision leaves it, will do."""
    try:
        path = _stored(path)
        content = _bytes(path)
        expected = md5 if path.suffix == ".gz" else extracted_md5
        if expected is None:
            _idx(content, path)
        elif hashlib.md5(content.data).hexdigest() != expected:
            return OSError(f"{path} is damaged: its MD5 checksum is not {expected}")
    except FileNotFoundError:
        return FileNotFoundError(path.name)
    except OSError as error:
        return error
    return None


def _stored(path: Path) -> Path:
    return path.with_suffix("") if path.with_suffix("").exists() and not path.exists() else path


def _bytes(path: Path) -> NDArray[np.uint8]:
    if path.stat().st_size > LARGEST:
        raise OSError(f"{path} is damaged: it is larger than any of these files")
    return np.fromfile(path, np.uint8)


def read(dataset: str, folder: Path) -> tuple[Split, Split]:
    """The training and the test images with their labels, from files that `locate` found whole. Raises OSError where
    they are not what their names say, which `locate` cannot tell where it knows no checksum."""

    def load(name: str) -> Tensor:
        path = _stored(folder / name)
        content = _bytes(path)
        return _idx(_inflate(content, path) if path.suffix == ".gz" else content, path)

    train_images, train_labels, test_images, test_labels = (load(name) for name, *_ in SOURCES[dataset].resources)
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels) or labels.max() > 9:
            raise OSError(f"{folder} is damaged: its images and labels do not belong together")
    return (train_images, train_labels.long()), (test_images, test_labels.long())


def _inflate(packed: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    """Of a whole .gz file; its last four bytes give the size. In pieces, so that no second copy is ever in memory."""
    size = int.from_bytes(packed[-4:].tobytes(), "little")
    content = np.empty(min(size, LARGEST), np.uint8)
    inflater, end, piece = zlib.decompressobj(wbits=31), 0, 1 << 16
    try:
        for start in range(0, len(packed), piece):
            out = inflater.decompress(packed[start : start + piece].data, max_length=len(content) - end + 1)
            content[end : end + len(out)] = np.frombuffer(out, np.uint8)
            end += len(out)
    except (zlib.error, ValueError):  # ValueError: it holds more than it says
        end = -1
    if end != size or not inflater.eof or inflater.unused_data:
        raise OSError(f"{path} is damaged: it is not a whole .gz file")
    return content


def _idx(content: NDArray[np.uint8], path: Path) -> Tensor:  # (N, 28, 28) or (N,) uint8, by the file's name
    """Reads the IDX format: two zero bytes, type 8 (uint8), number of dimensions, each as a big-endian int32, data."""
    kind, sides = ("images", [28, 28]) if "images" in path.name else ("labels", [])
    start = 8 + 4 * len(sides)
    shape = content[4:start].view(">u4").tolist() if len(content) > start else []
    whole = content[:4].tolist() == [0, 0, 8, 1 + len(sides)] and len(content) == start + math.prod(shape)
    if not whole or shape[1:] != sides:
        raise OSError(f"{path} is damaged: it is not a whole IDX file of {kind}")
    return torch.from_numpy(content[start:]).view(shape)


def fetch(dataset: str, data_dir: str | os.PathLike[str] | None = None, mirrors: list[str] | None = None) -> Path:
    """Makes sure that the four files are in their folder and whole, downloading what is not; returns the folder.

    Raises FileNotFoundError where some are missing and not to be had, OSError where some are damaged; the message says
    what was tried, and the ways out.
    """
    folder, problem = locate(dataset, data_dir)
    if problem is None:
        return folder
    tried = [] if mirrors != [] else ["data.mirrors is empty"]
    mirrors = list(SOURCES[dataset].mirrors if mirrors is None else mirrors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=FILE_SECONDS):  # of several processes, one downloads
            remove_parts(folder)
            for name, md5, extracted_md5 in _sums(dataset):
                if not tried and _check(folder / name, md5, extracted_md5):
                    tried = _download(mirrors, folder / name, md5)
    except Timeout:
        tried = [f"another process has held {folder / '.lock'} for {FILE_SECONDS:g} s"]
    except OSError as error:  # a full disk, a folder that is read-only
        tried = [str(error)]
    folder, left = locate(dataset, data_dir)
    if left is None:
        return folder
    name = SOURCES[dataset].__name__
    raise type(left)(
        f"{left}; not downloaded ({'; '.join(tried)}). Put the four .gz files into {folder}, or set MNIST_ROOT to the "
        f"folder that has {name}/raw; a training also takes data=digits, and servers that have the files: data.mirrors"
    )


def _download(mirrors: list[str], path: Path, md5: str) -> list[str]:
    """Tries one mirror after the other; returns what went wrong with each, or nothing when `path` is there. Raises
    OSError where it cannot be written."""
    failures = []
    for mirror in mirrors.copy():
        url = mirror.rstrip("/") + "/" + path.name
        log.info("downloading %s", url)
        try:
            content = _get(url)
            if hashlib.md5(content).hexdigest() != md5:
                raise OSError(f"wrong content: {len(content):,} bytes with another checksum than the published one")
        except Exception as error:  # whatever a server can provoke in urllib
            reason = error.reason if type(error) is URLError else error
            failures.append(f"{mirror}: {textwrap.shorten(str(reason), 200) or type(error).__name__}")
            mirrors.remove(mirror)
            mirrors.append(mirror)  # the last to be asked for the next file
            continue
        write(path, content)
        return []
    return failures


def _get(url: str) -> bytes:
    """`urlopen` limits each wait of its own, but not the resolver's, nor how many addresses, headers, reads there are:
    so it runs in a thread, which is left behind when it is too slow, and then ends by itself."""
    content, failures, done = bytearray(), list[Exception](), Event()

    def attempt() -> None:
        try:
            with urlopen(url, timeout=ANSWER_SECONDS) as response:
                while not failures and (chunk := response.read1(1 << 16)):
                    content.extend(chunk)
                    if len(content) > LARGEST:
                        raise OSError(f"it sends more than {LARGEST:,} bytes")
        except Exception as error:  # raised again below, where it is waited for
            if isinstance(error, HTTPError):
                error.close()
            failures.append(error)
        done.set()

    Thread(target=attempt, daemon=True).start()
    began = time.monotonic()
    while not failures and not done.wait(ANSWER_SECONDS):
        seconds = time.monotonic() - began
        if seconds > FILE_SECONDS or len(content) < SLOWEST * seconds:
            sent = f"only {len(content):,} bytes" if content else "no answer"
            failures.append(TimeoutError(f"{sent} within {seconds:.1f} s"))
    if failures:
        raise failures[0]
    return bytes(content)
