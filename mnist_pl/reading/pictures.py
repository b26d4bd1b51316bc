"""A stranger's picture file -> its brightness, turned as the camera was held: read without trust, and within bounds."""

import io
import os
import stat
import struct
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from mnist_pl.data.digits import BOX, CENTRE, SIDE
from mnist_pl.storage import printable

DRAFT = 1000  # pixels a side that a JPEG decoder leaves at least
SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jfif")
# Pictures that are not read: each is refused by name rather than passed over.
SUFFIXES += (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff", ".webp")

# A picture is a stranger's file. What it may cost:
BYTES = 100_000_000
PIXELS = 50_000_000  # decoded, up to four bytes each
SIDES = 65_535  # as in a JPEG
SCANS = 100  # of a progressive JPEG: ten are usual; each goes over all the pixels, and may take only a few bytes
LARGE = 3 * 2**20  # pixels; more than these are averaged in blocks before they are looked at

PNG, JPEG, JPEG_SCAN = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\xff\xda"
CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")  # of a PNG, that are looked at

Gray = NDArray[np.uint8]


def find_pictures(path: str | os.PathLike[str]) -> list[Path]:
    """The pictures of a folder and those below it, in order; or the one file named.

    Those that are neither PNG nor JPEG and folders that cannot be searched are among them: they are refused when read.
    Raises ValueError where there are none.
    """
    start = Path(path)
    if not start.is_dir():
        if str(path) == "-":
            raise ValueError("input=-: pictures are read from files; save what comes from the pipe in one")
        if not os.path.lexists(start):
            raise ValueError(f"input={printable(path)}: there is no such file or folder")
        return [start]
    closed: list[str] = []
    found = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(start, onerror=lambda error: closed.append(error.filename))
        for name in names
        if name.lower().endswith(SUFFIXES)
    ]
    found += closed
    if not found:
        raise ValueError(f"input={printable(path)}: the folder holds no picture; PNG and JPEG files are read")
    return [Path(name) for name in sorted(found)]


def load(path: str | os.PathLike[str]) -> Gray:
    """(H, W) luminance, turned as the camera was held. Raises ValueError where the file is not a readable picture."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # about metadata; what stops it from reading it raises
            return _gray(_open(_read(path)))
    except SyntaxError as error:
        raise ValueError(f"the file is broken ({error})") from None
    except OSError as error:
        raise ValueError(error.strerror or error) from None


def _read(path: str | os.PathLike[str]) -> bytes:
    """Opens plain files alone: a FIFO would be waited for, and a device may never end."""
    about = os.stat(path)
    if stat.S_ISDIR(about.st_mode):
        raise ValueError("a folder that cannot be searched")
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("not a plain file")
    if about.st_size > BYTES:
        raise ValueError(f"{about.st_size:,} bytes are too many; at most {BYTES:,} are read")
    with open(path, "rb") as file:
        return file.read(about.st_size)


def _open(content: bytes) -> Image.Image:
    """Not by Image.open: its limit counts a JPEG's pixels before the draft, and is a setting of the whole process."""
    if content.startswith(PNG):
        picture: PngImageFile | JpegImageFile = PngImageFile(io.BytesIO(_essential(content)))
    elif content.startswith(JPEG):
        picture = JpegImageFile(io.BytesIO(content))
    else:
        raise ValueError("not a PNG or JPEG picture")
    wide, high = picture.size
    if isinstance(picture, JpegImageFile):
        if _is_decoded_by_rows(picture, content):
            picture.draft("L", (DRAFT, DRAFT))  # lets the decoder skip what would be thrown away; once is enough
        elif content.count(JPEG_SCAN) > SCANS:
            raise ValueError(f"a JPEG of over {SCANS} scans")
    if picture.width * picture.height > PIXELS or max(wide, high) > SIDES:
        raise ValueError(f"{wide}x{high} pixels are too many; at most {PIXELS:,} are read, {SIDES:,} a side")
    picture.draft("L", (DRAFT, DRAFT))
    return picture


def _essential(png: bytes) -> bytes:
    """Without texts, colour profiles and further frames: broken they would stop Pillow, and bombs keep it busy."""
    parts, at = [PNG], len(PNG)
    while at + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        if kind in CHUNKS:
            parts.append(png[at : at + 12 + length])
        at += 12 + length
    return b"".join(parts)


def _is_decoded_by_rows(picture: JpegImageFile, content: bytes) -> bool:
    """One scan holds all the colours. Else libjpeg keeps two bytes for each value of each pixel, whatever the draft."""
    header = JPEG_SCAN + struct.pack(">HB", 6 + 2 * picture.layers, picture.layers)
    end = picture.fp.tell() if picture.fp is not None else 0  # of the first scan's header
    return "progressive" not in picture.info and content.startswith(header, end - 8 - 2 * picture.layers)


def _gray(picture: Image.Image) -> Gray:
    """Transparent parts become paper in contrast to the ink."""
    picture.load()
    block = 1
    while picture.width * picture.height > LARGE * block**2:
        block *= 2
    if picture.mode == "L" and "transparency" not in picture.info and block == 1:
        gray = np.asarray(picture)
    else:
        gray = _on_paper(picture, block)
    return _turned(gray, picture) if "exif" in picture.info else gray


def _on_paper(picture: Image.Image, block: int) -> Gray:
    """The means over blocks of that many pixels a side, a strip at a time: as RGBA, the whole would be large."""
    strips = []
    rows = block * max(1, LARGE // (picture.width * block))
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        if strip.mode.startswith("I"):  # 16 bits a pixel; convert would clip it
            strip = Image.fromarray((np.asarray(strip) >> 8).astype(np.uint8))
        strips.append(np.asarray(strip.convert("RGBA").convert("LA").reduce(block)))
    gray, alpha = np.moveaxis(np.concatenate(strips), 2, 0)
    if alpha.min() == 255:
        return gray
    luminance, opacity = gray.astype(np.float32), alpha.astype(np.float32) / 255
    weight = opacity.sum()
    paper = 255.0 if weight == 0 or (luminance * opacity).sum() / weight < 128 else 0.0
    return (luminance * opacity + paper * (1 - opacity)).astype(np.uint8)


def _turned(gray: Gray, picture: Image.Image) -> Gray:
    """As the camera was held. Broken EXIF turns nothing, as in any viewer."""
    orientation = None
    with suppress(SyntaxError, struct.error):
        orientation = picture.getexif().get(ExifTags.Base.Orientation)
    if orientation in (5, 6, 7, 8):
        gray = gray.T
    if orientation in (2, 3, 6, 7):
        gray = gray[:, ::-1]
    if orientation in (3, 4, 7, 8):
        gray = gray[::-1]
    return gray


def is_prepared(images: Gray) -> NDArray[np.bool_]:  # (N, 28, 28) -> (N,)
    """Which are in MNIST's form already: ink in a box of 20x20 on plain 0, its centre of mass at the centre."""
    sides, centres = [], []
    for axis in (1, 2):  # the profile over the columns, then over the rows
        profile = images.sum(axis=axis, dtype=np.int64)  # (N, 28)
        inked = profile > 0
        sides.append(SIDE - inked.argmax(axis=1) - inked[:, ::-1].argmax(axis=1))
        centres.append(profile @ np.arange(SIDE) / np.maximum(profile.sum(axis=1), 1))
    side = np.maximum(*sides)
    return (side >= BOX - 1) & (side <= BOX) & (np.abs(np.stack(centres) - CENTRE).max(axis=0) <= 1)
