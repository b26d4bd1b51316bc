"""A person's picture becomes what the networks were trained on."""

import os
import resource
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from stat import S_IFSOCK
from typing import Any

import numpy as np
import pytest
from conftest import MNIST_ROOT, PROCESSES, needs_mnist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw, ImageFilter, ImageOps, PngImagePlugin

from mnist_pl import data, pictures

STRANGERS = "a stranger's picture is answered, or refused in one line"
Record = Callable[[str, Any], None]


def seven(size: tuple[int, int] = (300, 400), pen: int = 24, ink: int = 20, paper: int = 250) -> Image.Image:
    """A 7 drawn with a round pen, off-centre."""
    page = Image.new("L", size, paper)
    draw = ImageDraw.Draw(page)
    draw.line([(60, 80), (180, 80), (110, 260)], fill=ink, width=pen, joint="curve")
    return page


def read(page: Image.Image, tmp_path: Path, name: str = "page.png", **how) -> np.ndarray:
    page.save(tmp_path / name, **how)
    images, _, errors = pictures.read_pictures([tmp_path / name])
    if errors:
        raise ValueError(errors[0])
    return images[0]


def box(image: np.ndarray) -> tuple[int, int]:
    rows, columns = np.flatnonzero(image.max(1)), np.flatnonzero(image.max(0))
    return rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


def centre(image: np.ndarray) -> np.ndarray:
    weights = image.astype(float) / image.sum()
    return np.array([weights.sum(1) @ np.arange(28), weights.sum(0) @ np.arange(28)])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean over the pixels, of 255; a centre of mass near half a pixel may round either way."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(np.abs(np.roll(one, shift, (0, 1)).astype(float) - other).mean() for shift in shifts)


def test_the_ink_fits_20x20_and_is_centred_by_mass(tmp_path: Path) -> None:
    image = read(seven(), tmp_path)
    assert image.shape == (28, 28) and image.dtype == np.uint8 and image.max() == 255
    assert max(box(image)) in (19, 20)
    assert np.abs(centre(image) - 14).max() <= 0.51


def test_size_place_and_polarity_do_not_matter(tmp_path: Path) -> None:
    plain = read(seven(), tmp_path)
    others = {
        "white on black": read(seven(ink=255, paper=0), tmp_path),
        "grey on grey": read(seven(ink=90, paper=160), tmp_path),
        "larger": read(seven().resize((900, 1200)), tmp_path),
        "moved": read(
            seven().transform((500, 500), Image.Transform.AFFINE, (1, 0, -150, 0, 1, -90), fillcolor=250), tmp_path
        ),
        "jpeg": read(seven().convert("RGB"), tmp_path, "page.jpg", quality=60),
        "colour": read(Image.merge("RGB", [seven(), Image.new("L", (300, 400), 240), seven()]), tmp_path),
        "palette": read(seven().convert("P"), tmp_path),
        "16 bits": read(Image.fromarray(np.asarray(seven(), dtype=np.uint16) * 257), tmp_path),
        "cmyk": read(seven().convert("CMYK"), tmp_path, "page.jpg"),
    }
    for name, other in others.items():
        assert difference(other, plain) < 6, name


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(tmp_path: Path, ink: int) -> None:
    mask = seven(ink=255, paper=0)
    page = Image.merge("LA", [Image.new("L", mask.size, ink), mask])
    assert difference(read(page, tmp_path), read(seven(), tmp_path)) < 6


def test_photographs_are_turned_by_exif(tmp_path: Path) -> None:
    for orientation in (*range(1, 9), 0, 9, 300):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("page.jpg", "page.png"):
            turned = read(seven().convert("RGB"), tmp_path, name, exif=exif)
            with Image.open(tmp_path / name) as page:
                straight = read(ImageOps.exif_transpose(page.convert("L")), tmp_path, "straight.png")
            assert difference(turned, straight) < 2, (orientation, name)


def test_shadow_and_grain_are_not_ink(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shade = np.linspace(0, 45, 300)[None, :] + random.normal(0, 5, (400, 300))
    photo = Image.fromarray((np.asarray(seven(paper=230)) - shade).clip(0, 255).astype(np.uint8))
    assert difference(read(photo, tmp_path), read(seven(), tmp_path)) < 10


def test_thin_and_thick_pens_come_near_mnists_strokes(tmp_path: Path) -> None:
    mass = {pen: read(seven(pen=pen), tmp_path).sum() / 255 for pen in (3, 24, 60)}
    assert mass[3] > 55 and mass[60] < 190
    assert mass[3] > 0.6 * mass[24]


@pytest.mark.parametrize(
    "page",
    [Image.new("L", (50, 50), 255), Image.new("RGB", (300, 300)), Image.new("L", (1, 1)), Image.new("LA", (9, 9))],
)
def test_a_blank_page_shows_no_ink(page: Image.Image, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="page.png: shows no ink"):
        read(page, tmp_path)


def test_grainy_blank_paper_shows_no_ink(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).normal(220, 2, (300, 300)).clip(0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match="shows no ink"):
        read(Image.fromarray(grain).filter(ImageFilter.GaussianBlur(1)), tmp_path)


def test_digits_in_mnists_form_are_left_alone(tmp_path: Path) -> None:
    _, (images, _) = data.embedded_digits()
    for image in images[:20].numpy():
        assert np.array_equal(read(Image.fromarray(image), tmp_path), image)


@needs_mnist
def test_mnists_own_preparation_is_recovered(tmp_path: Path) -> None:
    """Its test images, enlarged, inverted and moved, come back close to what they were."""
    _, (images, _) = data.read("mnist", data.raw_folder("mnist", MNIST_ROOT))
    errors = []
    for image in images[:50].numpy():
        page = Image.new("L", (400, 400), 255)
        page.paste(Image.fromarray(255 - image).resize((224, 224), Image.Resampling.BICUBIC), (120, 30))
        errors.append(difference(read(page, tmp_path), image))
    assert np.mean(errors) < 12  # of 255


def test_folders_are_searched_below_and_loops_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "folder.png").mkdir()
    for name in ("a/2.png", "a/b/1.JPG", "a/b/notes.txt", "0.jpeg", "drawing.svg", "predictions.csv"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in pictures.find_pictures(tmp_path)]
    assert found == ["0.jpeg", "a/2.png", "a/b/1.JPG", "drawing.svg"]

    whole = os.scandir

    def scandir(path: str) -> Any:
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert pictures.find_pictures(tmp_path)[2] == tmp_path / "a" / "b"
    assert pictures.read_pictures([tmp_path / "a" / "b"])[2] == [f"{tmp_path}/a/b: a folder that cannot be searched"]


# What strangers send. Pillow writes neither 16 bits a colour nor interlaced PNGs, let alone broken ones.

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(*parts: bytes) -> bytes:
    """Each part is a chunk's four letters and its content."""
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return pictures.PNG + b"".join(chunks)


def header(width: int, height: int, depth: int, colours: int, interlaced: int = 0) -> bytes:
    return b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlaced)


def written(pixels: np.ndarray, colours: int, interlaced: bool = False) -> bytes:
    """PNG of (H, W) or (H, W, C) of 8 or 16 bits."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    rows = (row for top, left, down, right in passes for row in pixels[top::down, left::right] if row.size)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    first = header(pixels.shape[1], pixels.shape[0], pixels.itemsize * 8, colours, int(interlaced))
    return png(first, b"IDAT" + packed, b"IEND")


def saved(page: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = BytesIO()
    page.save(file, kind, **how)
    return file.getvalue()


def kinds(page: Image.Image) -> dict[str, bytes]:
    """The page in everything that PNG and JPEG can be."""
    gray = np.asarray(page)
    wide = gray.astype(np.uint16) * 257
    ink = ImageOps.invert(page)
    see_through = Image.merge("LA", [Image.new("L", page.size, 0), ink])
    palette = page.quantize(4)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 1, "a seven"
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "seven", zip=True)
    cmyk = saved(page.convert("CMYK"), "JPEG")
    return {
        "L": saved(page),
        "LA": saved(see_through),
        "RGB": saved(page.convert("RGB")),
        "RGBA": saved(see_through.convert("RGBA")),
        "P": saved(palette),
        "P, one colour transparent": saved(palette, transparency=palette.getpixel((0, 0))),
        "P with alpha": saved(palette, transparency=b"\xff\xf0\xe0\xd0"),
        "L, one level transparent": saved(page, transparency=page.getpixel((0, 0))),
        "1 bit": saved(page.convert("1")),
        "2 bits": saved(palette, bits=2),
        "16 bits": written(wide, 0),
        "16 bits, LA": written(np.stack([wide * 0, 65535 - wide], 2), 4),
        "16 bits, RGB": written(np.stack([wide] * 3, 2), 2),
        "16 bits, RGBA": written(np.stack([wide] * 3 + [wide * 0 + 65535], 2), 6),
        "interlaced": written(gray, 0, interlaced=True),
        "animated": saved(page, save_all=True, append_images=[ink, page]),
        "with text": saved(page, pnginfo=text, exif=exif, icc_profile=bytes(500)),
        "broken exif": saved(page, exif=b"MM\0*\0\0\0\x08\xff\xff"),
        "JPEG": saved(page, "JPEG"),
        "JPEG, RGB": saved(page.convert("RGB"), "JPEG", exif=exif, comment="seven"),
        "JPEG, 4:4:4": saved(page.convert("RGB"), "JPEG", subsampling=0, restart_marker_blocks=2),
        "JPEG, CMYK": cmyk,
        "JPEG, YCCK": cmyk.replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
        "JPEG, progressive": saved(page.convert("RGB"), "JPEG", progressive=True),
        "JPEG, broken exif": saved(page, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
    }


def packed(row: bytes, rows: int) -> bytes:
    """zlib's form of many equal rows, a few at a time."""
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(row) for _ in range(rows)), packer.flush()])


def scans(width: int, height: int, number: int) -> bytes:
    """A progressive JPEG of one level of gray whose scans of `height` rows take fifteen bytes each."""
    table = b"\xff\xc4" + struct.pack(">HB", 19 + 15, 0x10) + bytes([0, 0, 0, 15, *[0] * 12])
    table += bytes(range(0, 0xF0, 0x10))  # codes of four bits: the ends of 1, 2, 4, ... 16384 blocks
    first = b"\xff\xc4" + struct.pack(">HB", 19 + 1, 0) + bytes([1, *[0] * 15, 0])  # one bit: no difference
    frame = b"\xff\xc2" + struct.pack(">HBHHB3B", 11, 8, height, width, 1, 1, 0x11, 0)
    levels = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    blocks = -(-width // 8) * -(-height // 8)
    start = b"\xff\xda\0\x08\1\1\0\0\0\0" + bytes(-(-blocks // 8))
    # A run of 2^14 + (2^14 - 1) blocks, as often as it takes: code 1110, then 14 bits.
    runs = -(-blocks // 32767)
    bits = ("1110" + "1" * 14) * runs
    run = int(bits.ljust(-(-len(bits) // 8) * 8, "1"), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\xff", b"\xff\0")
    more = b"".join(b"\xff\xda\0\x08\1\1\0\1\x3f\0" + run for _ in range(number - 1))
    return b"\xff\xd8" + levels + frame + first + table + start + more + b"\xff\xd9"

