"""A person's picture becomes what the networks were trained on."""

from pathlib import Path

import numpy as np
import pytest
from conftest import MNIST_ROOT, needs_mnist
from PIL import Image, ImageDraw, ImageFilter

from mnist_pl import data, pictures


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


def test_a_photograph_turned_by_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees
    turned = read(seven().convert("RGB").transpose(Image.Transpose.ROTATE_90), tmp_path, "page.jpg", exif=exif)
    assert difference(turned, read(seven(), tmp_path)) < 6


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


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    whole = tmp_path / "whole.png"
    seven().save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    seven().save(tmp_path / "really.gif")
    (tmp_path / "really.gif").rename(tmp_path / "gif.png")
    for name in ("text.png", "empty.jpg", "half.png", "gif.png", "absent.png"):
        images, names, errors = pictures.read_pictures([tmp_path / name, whole])
        assert len(images) == 1 and names == [str(whole)]
        assert len(errors) == 1 and name in errors[0] and "\n" not in errors[0]


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


def test_folders_are_searched_below_and_loops_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/2.png", "a/b/1.JPG", "a/b/notes.txt", "0.jpeg"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in pictures.find_pictures(tmp_path)]
    assert found == ["0.jpeg", "a/2.png", "a/b/1.JPG"]
