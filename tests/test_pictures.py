"""A person's picture becomes what the networks were trained on."""

import os
import resource
import struct
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from stat import S_IFSOCK
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MNIST_ROOT, PROCESSES, needs_mnist
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image, ImageDraw, ImageFilter, ImageOps, PngImagePlugin

from mnist_pl.data import files
from mnist_pl.data.digits import embedded_digits
from mnist_pl.models import DigitClassifier
from mnist_pl.reading import numbers, pictures
from mnist_pl.reading.numbers import Answer, read_files
from mnist_pl.storage import printable

STRANGERS = "a stranger's picture is answered, or refused in one line"
Record = Callable[[str, Any], None]


def seven(size: tuple[int, int] = (300, 400), pen: int = 24, ink: int = 20, paper: int = 250) -> Image.Image:
    """A 7 drawn with a round pen, off-centre."""
    page = Image.new("L", size, paper)
    draw = ImageDraw.Draw(page)
    draw.line([(60, 80), (180, 80), (110, 260)], fill=ink, width=pen, joint="curve")
    return page


class Blind(DigitClassifier):
    """Takes everything for a 7, and two for 77."""

    reads_pairs = True

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return 20 * torch.nn.functional.one_hot(torch.full((len(images),), 7), 10).float()

    def read_pairs(self, images: torch.Tensor) -> torch.Tensor:
        return self(images)[:, None].expand(-1, 2, -1).log_softmax(dim=2)


BLIND = Blind()


def answer(path: Path) -> Answer:
    ((_, said),) = read_files(BLIND, [path])
    if isinstance(said, ValueError):
        raise said
    return said


def read(page: Image.Image, tmp_path: Path, name: str = "page.png", **how) -> np.ndarray:
    """What the network sees of the one digit of a picture."""
    page.save(tmp_path / name, **how)
    (digit,) = answer(tmp_path / name).digits
    return digit.image


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


def test_large_drawings_lose_no_strokes(tmp_path: Path) -> None:
    eights = []
    for side in (200, 600, 1000, 3000):
        page = Image.new("L", (side, side), 250)
        for left, top, right, bottom in ((0.3, 0.08, 0.7, 0.5), (0.25, 0.44, 0.75, 0.92)):
            corners = (side * left, side * top, side * right, side * bottom)
            ImageDraw.Draw(page).ellipse(corners, outline=20, width=round(side * 0.06))
        eights.append(read(page, tmp_path))
    assert all(difference(eight, eights[0]) < 1.5 for eight in eights)


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
            seven().convert("RGB").save(tmp_path / name, exif=exif)
            with Image.open(tmp_path / name) as page:
                straight = np.asarray(ImageOps.exif_transpose(page.convert("L")))
            turned = pictures.load(tmp_path / name)
            assert turned.shape == straight.shape, (orientation, name)
            assert np.abs(turned.astype(float) - straight).mean() < 2, (orientation, name)


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
    page.save(tmp_path / "page.png")
    assert answer(tmp_path / "page.png") == Answer("", 1.0, "blank")


def test_grainy_blank_paper_shows_no_ink(tmp_path: Path) -> None:
    grain = np.random.default_rng(0).normal(220, 2, (300, 300)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grain).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / "page.png")
    assert answer(tmp_path / "page.png").note == "blank"


def test_digits_in_mnists_form_are_left_alone(tmp_path: Path) -> None:
    _, (images, _) = embedded_digits()
    for image in images[:20].numpy():
        assert np.array_equal(read(Image.fromarray(image), tmp_path), image)


@needs_mnist
def test_mnists_own_preparation_is_recovered(tmp_path: Path) -> None:
    """Its test images, enlarged, inverted and moved, come back close to what they were."""
    _, (images, _) = files.read("mnist", files.raw_folder("mnist", MNIST_ROOT))
    errors = []
    for image in images[:20].numpy():
        page = Image.new("L", (400, 400), 255)
        page.paste(Image.fromarray(255 - image).resize((224, 224), Image.Resampling.BICUBIC), (120, 30))
        errors.append(difference(read(page, tmp_path), image))
    assert np.mean(errors) < 12  # of 255


def test_folders_are_searched_below_and_loops_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ValueError, match="a folder that cannot be searched"):
        pictures.load(tmp_path / "a" / "b")


# What strangers send. Pillow writes neither 16 bits a colour nor interlaced PNGs, let alone broken ones.

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def png(*parts: bytes) -> bytes:
    """Each part is a chunk's four letters and its content."""
    chunks = (struct.pack(">I", max(0, len(part) - 4)) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
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
        "1 bit": saved(page.convert("1", dither=Image.Dither.NONE)),
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


def blank(width: int, height: int, depth: int, colours: int, rows: int) -> bytes:
    """PNG that claims `height` rows and has so many."""
    row = bytes(1 + width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[colours] // 8)
    packer = zlib.compressobj(1)
    packed = b"".join([*(packer.compress(row) for _ in range(rows)), packer.flush()])
    return png(header(width, height, depth, colours), b"IDAT" + packed, b"IEND")


def claims(width: int, height: int, frame: int, scanned: int) -> bytes:
    """The beginning of a JPEG of three colours, of which `scanned` are in its first scan."""
    colours = [bytes([colour, 0x11, 0]) for colour in range(3)]
    start = b"\xff\xd8\xff" + struct.pack(">BHBHHB", frame, 17, 8, height, width, 3) + b"".join(colours)
    tables = b"".join(colour[:1] + b"\0" for colour in colours[:scanned])
    return start + b"\xff\xda" + struct.pack(">HB", 6 + 2 * scanned, scanned) + tables + b"\0\x3f\0"


def hostile(folder: Path) -> dict[str, str]:
    """Lays a stranger's pictures there, and what is none; returns the reason to refuse each: "" for what is read."""
    page = seven().resize((60, 80))
    whole, jpeg, kind = saved(page), saved(page, "JPEG"), "not a PNG or JPEG picture"
    size, pixels = header(27, 28, 8, 0), zlib.compress((b"\0" + bytes(7) + b"\xff" * 20) * 28)
    inflating = b"a\0\0" + zlib.compress(bytes(50_000_000))
    files = {
        "text bomb.png": (png(size, b"zTXt" + inflating, b"IDAT" + pixels, b"iTXt" + inflating, b"IEND"), ""),
        "profile bomb.png": (png(size, *[b"iCCP" + inflating] * 50, b"IDAT" + pixels, b"IEND"), ""),
        "more than pixels.png": (png(size, b"IDAT" + zlib.compress(zlib.decompress(pixels) + bytes(50_000_000))), ""),
        "frames.png": (png(size, b"acTL" + b"\xff" * 8, b"fcTL" + b"\xff" * 26, b"IDAT" + pixels, b"IEND"), ""),
        "jpeg.png": (jpeg, ""),
        "-dash.png": (whole, ""),
        "=1+1.png": (whole, ""),
        'a=b, {c}; $(d) "e".png': (whole, ""),
        "line\nbreak.png": (whole, ""),
        "\x1b[31mred\x1b]0;title\x07.png": (whole, ""),
        "\u202egnp.\u6728\xdf.png": (whole, ""),
        os.fsdecode(b"latin \xff\xe9.png"): (whole, ""),
        "n" * 251 + ".png": (whole, ""),
        "bad\nerror: name\x1b[2J.png": (b"", kind),
        os.fsdecode(b"bad \xff.jpg"): (b"", kind),
        "text.png": (b"hello", kind),
        "gif.png": (saved(page, "GIF"), kind),
        "drawing.svg": (b"<svg/>", kind),
        "photo.WEBP": (b"RIFF", kind),
        "scan.tiff": (saved(page, "TIFF"), kind),
        "magic.png": (whole[:8], "the file is broken"),
        "half.png": (whole[: len(whole) // 2], "truncated"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "30000x30000.png": (blank(30000, 30000, 8, 0, 1), "30000x30000 pixels are too many; at most 50,000,000"),
        "thin.png": (blank(10**6, 1, 1, 0, 1), "1000000x1 pixels are too many"),
        "nothing.png": (blank(0, 5, 8, 0, 1), "the file is broken"),
        "short.png": (blank(7000, 7000, 8, 6, 1), ""),
        "65500x65500.jpg": (claims(65500, 65500, 0xC0, 3), "65500x65500 pixels are too many"),
        "all at once.jpg": (claims(10000, 10000, 0xC0, 3), "broken"),
        "colour by colour.jpg": (claims(10000, 10000, 0xC0, 1), "10000x10000 pixels are too many"),
        "progressive.jpg": (claims(10000, 10000, 0xC2, 3), "10000x10000 pixels are too many"),
        "scans.jpg": (saved(page, "JPEG", progressive=True) + b"\xff\xda" * 100, "over 100 scans"),
        "1x1.png": (saved(Image.new("L", (1, 1))), ""),
        "transparent.png": (saved(Image.new("LA", (9, 9))), ""),
        "30000x2.png": (saved(Image.new("L", (30000, 2))), ""),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    links = {"loop.png": "loop.png", "dangling.png": "absent", "zero.png": "/dev/zero", "link.png": "jpeg.png"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "fifo.png")
    os.mknod(folder / "socket.jpg", S_IFSOCK)
    (folder / "large.png").touch()
    os.truncate(folder / "large.png", 10**12)
    (folder / "folder.png").mkdir()  # to be passed over, as are these two
    (folder / "notes.txt").touch()
    (folder / "predictions.csv").touch()
    return {name: reason for name, (_, reason) in files.items()} | {
        "loop.png": "Too many levels of symbolic links",
        "dangling.png": "No such file",
        "zero.png": "not a plain file",
        "link.png": "",
        "fifo.png": "not a plain file",
        "socket.jpg": "not a plain file",
        "large.png": "1,000,000,000,000 bytes are too many; at most 100,000,000",
    }


CRAFTED = pytest.mark.promise(STRANGERS, "crafted: bombs, FIFOs, loops, odd kinds and names")


@CRAFTED
def test_strangers_pictures_are_answered_or_refused(tmp_path: Path, record_property: Record) -> None:
    reasons = hostile(tmp_path)
    said = {Path(name).name: answer for name, answer in read_files(BLIND, pictures.find_pictures(tmp_path))}
    assert {
        name: str(reason) if isinstance(reason, ValueError) else "" for name, reason in said.items()
    }.keys() == reasons.keys()
    for name, reason in reasons.items():
        if reason:
            assert isinstance(said[name], ValueError) and reason in str(said[name]), name
        else:
            assert isinstance(said[name], Answer), name
    record_property("tried", len(reasons))


@CRAFTED
def test_every_kind_of_png_and_jpeg_is_read(tmp_path: Path, record_property: Record) -> None:
    plain, pages = read(seven(), tmp_path), kinds(seven())
    for name, content in pages.items():
        (tmp_path / name).write_bytes(content)
        (digit,) = answer(tmp_path / name).digits
        assert difference(digit.image, plain) < 6, name
    record_property("tried", len(pages))


def report_peak(path: Path) -> None:
    """Leaves beside the picture by how many MB reading it raised this process's peak, and the note."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    note = answer(path).note
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    path.with_suffix(".txt").write_text(f"{peak // 1024} {note}")


LARGE: dict[str, Callable[[], bytes]] = {
    "16 bits.png": lambda: blank(7000, 7000, 16, 0, 7000),
    "8 bits.png": lambda: blank(8000, 5000, 8, 6, 5000),
    "phone.jpg": lambda: saved(seven().resize((12000, 16000), Image.Resampling.NEAREST), "JPEG"),
    "progressive.jpg": lambda: saved(seven().resize((6000, 8000)).convert("RGB"), "JPEG", progressive=True),
}


@CRAFTED
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "8 bits.png" else pytest.mark.long) for name in LARGE]
)
def test_large_pictures_take_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LARGE[name]())
    process = PROCESSES.Process(target=report_peak, args=(path,))
    process.start()
    process.join(60)
    peak, _, note = path.with_suffix(".txt").read_text().partition(" ")
    assert int(peak) < 350
    assert note == ("" if name.endswith("jpg") else "blank")


@pytest.mark.promise(STRANGERS, "hypothesis: any pixels, up to 40 x 40")
def test_any_pixels_are_read(record_property: Record) -> None:
    count = int(os.environ.get("FUZZ", 100))

    @settings(max_examples=count, deadline=None, database=None)
    @given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=40)))
    def read_one(gray: np.ndarray) -> None:
        said = numbers.read(BLIND, gray)
        assert said.note == "blank" if not said.digits else set(said.text) <= set("7/")
        for digit in said.digits:
            assert digit.image.shape == (28, 28) and digit.image.dtype == np.uint8 and digit.image.any()

    read_one()
    record_property("tried", count)


def split(content: bytes) -> list[bytes]:
    """A PNG's chunks without length and checksum, or a JPEG's segments, of which the last is all the rest."""
    parts, at = [], 8 if content.startswith(pictures.PNG) else 2
    while at < len(content):
        if content.startswith(pictures.PNG):
            end = at + 12 + int.from_bytes(content[at : at + 4])
            parts.append(content[at + 4 : end - 4])
        else:
            end = len(content) if content[at + 1] == 0xDA else at + 2 + int.from_bytes(content[at + 2 : at + 4])
            parts.append(content[at:end])
        at = end
    return parts


SIZES = st.sampled_from((0, 1, 2, 28, 5000, 65535, 65536, 2**31 - 1, 2**32 - 1))


def sized(draw: st.DrawFn, part: bytes) -> bytes:
    """With the width and height of its header at an extreme."""
    width, height = draw(SIZES), draw(SIZES)
    if part.startswith(b"IHDR"):
        depth, colours = draw(st.sampled_from((0, 1, 2, 4, 8, 16, 255))), draw(st.sampled_from((0, 2, 3, 4, 6, 7)))
        return header(width, height, depth, colours, draw(st.integers(0, 2)))
    if part.startswith((b"\xff\xc0", b"\xff\xc2")):
        return part[:5] + struct.pack(">HH", height % 2**16, width % 2**16) + part[9:]
    return part


def scarred(draw: st.DrawFn, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    length = draw(st.sampled_from((0, 1, 1, 4, 50, len(content))))
    return content[:at] + draw(st.binary(max_size=5) | st.just(b"\xff" * length)) + content[at + length :]


@cache
def small() -> list[bytes]:
    return list(kinds(seven().resize((36, 48))).values())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    whole = draw(st.sampled_from(small()))
    parts = split(whole)
    if draw(st.booleans()):
        parts = [
            b"IDAT" + zlib.compress(scarred(draw, zlib.decompress(part[4:]))) if part[:4] == b"IDAT" else part
            for part in parts
        ]
    for _ in range(draw(st.integers(0, 3))):
        at, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        match draw(st.sampled_from(("scar", "size", "double", "move", "drop"))):
            case "scar":
                parts[at] = scarred(draw, parts[at])
            case "size":
                parts = [sized(draw, part) for part in parts]
            case "double":
                parts.insert(other, parts[at])
            case "move":
                parts.insert(other, parts.pop(at))
            case "drop" if len(parts) > 1:
                del parts[at]
    content = png(*parts) if whole.startswith(pictures.PNG) else b"\xff\xd8" + b"".join(parts)
    for _ in range(draw(st.integers(0, 2))):
        content = content[:8] + scarred(draw, content[8:])  # its first bytes are still those of a PNG or JPEG
    return content


@pytest.mark.promise(STRANGERS, "hypothesis: chunks and bytes changed, cut, moved, inserted; sizes at extremes")
def test_mutated_pictures_are_answered_or_refused(
    tmp_path: Path, record_property: Record, capfd: pytest.CaptureFixture[str]
) -> None:
    tried, path = 0, tmp_path / "page.png"

    @settings(max_examples=int(os.environ.get("FUZZ", 200)), deadline=None, database=None)
    @given(mutated())
    def read_one(content: bytes) -> None:
        nonlocal tried
        tried += 1
        path.write_bytes(content)
        ((_, said),) = read_files(BLIND, [path])
        assert isinstance(said, Answer) or (printable(str(said)) and "\n" not in str(said))

    read_one()
    assert capfd.readouterr() == ("", "")
    record_property("tried", tried)
