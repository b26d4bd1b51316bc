"""Whole pictures: light, rules and frames left out, digits joined, cut and put into lines."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import Run
from PIL import Image, ImageDraw

from mnist_pl.data.digits import embedded_digits
from mnist_pl.models import DigitClassifier
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.reading.cuts import Cut, between, winding_cuts
from mnist_pl.reading.ink import Part, find_ink
from mnist_pl.reading.numbers import Seen, classify, find_digits, in_lines, read, typical_height

Gray = np.ndarray


@pytest.fixture(scope="module")
def model(trained: Path) -> DigitClassifier:
    return load_model(trained / "checkpoints" / "best.ckpt")[0]


@pytest.fixture(scope="module")
def known(model: DigitClassifier) -> dict[str, Gray]:
    """Of each digit a test image that the network is sure of, without its margins: ink, light on 0."""
    _, (images, labels) = embedded_digits()
    sure = classify(model, images.numpy())
    found = {}
    for digit in range(10):
        best = int(np.where(labels.numpy() == digit, sure[:, digit], 0).argmax())
        image = images[best].numpy()
        rows, columns = np.flatnonzero(image.max(1)), np.flatnonzero(image.max(0))
        found[str(digit)] = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return found


def page(known: dict[str, Gray], lines: list[str], rise: float = 0.0, gap: int = 14, paper: int = 230) -> Gray:
    """Dark on light, the digits 60 pixels high, lines rising by so many pixels for each to the right."""
    gray = np.full((140 * len(lines) + 160, 560), paper, np.float32)
    for row, line in enumerate(lines):
        x = 60
        for digit in line:
            ink = known[digit]
            ink = cv2.resize(ink, (round(ink.shape[1] * 60 / ink.shape[0]), 60), interpolation=cv2.INTER_CUBIC)
            y = 100 + 140 * row - round(rise * x)
            gray[y : y + 60, x : x + ink.shape[1]] -= ink.clip(0, 255) * np.float32(0.7)
            x += ink.shape[1] + gap
    return gray.clip(0, 255).astype(np.uint8)


def lit(gray: Gray) -> Gray:
    """Under a lamp, with a shadow's hard edge across it, and a camera's noise."""
    height, width = gray.shape
    light = np.linspace(1, 0.6, width)[None, :] * np.where(np.arange(height)[:, None] > 0.55 * height, 0.75, 1)
    return (gray * light + np.random.default_rng(0).normal(0, 2, gray.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("rise", [0.0, 0.12])
def test_lines_are_read(model: DigitClassifier, known: dict[str, Gray], rise: float) -> None:
    gray = page(known, ["2047", "9638"], rise)
    for picture in (gray, lit(gray), 255 - gray):
        answer = read(model, picture)
        assert answer.text == "2047/9638"
        assert [(digit.line, digit.place) for digit in answer.digits] == [(i, j) for i in range(2) for j in range(4)]
    left, top, right, bottom = read(model, gray).digits[0].box
    assert abs(left - 60) <= 10 and abs(top - 100 + rise * 60) <= 10 and 40 < bottom - top < 70 and left < right < 130


def test_rules_and_frames_are_no_ink(model: DigitClassifier, known: dict[str, Gray]) -> None:
    gray = page(known, ["2047", "9638"])
    squared, framed = gray.copy(), gray.copy()
    squared[10::40], squared[:, 30::40] = np.minimum(squared[10::40], 150), np.minimum(squared[:, 30::40], 150)
    framed[[8, 9, -9, -8], 8:-8], framed[8:-8, [8, 9, -9, -8]] = 40, 40
    pasted = np.full((700, 800), 255, np.uint8)
    pasted[100 : 100 + len(gray), 120 : 120 + gray.shape[1]] = gray - 60
    for name, picture in {"squared": squared, "framed": framed, "pasted": pasted}.items():
        found, _ = find_digits(find_ink(picture))
        assert sorted(part.height // 10 for part in found) == [6] * 8, name
        assert name == "squared" or read(model, picture).text == "2047/9638", name  # where a rule ran, ink is missing
    left, top = read(model, pasted).digits[0].box[:2]
    assert abs(left - 180) <= 10 and abs(top - 200) <= 10, "in the pixels of the picture that was given"


@pytest.mark.parametrize(("fall", "thick"), [(0.004, 2), (0.03, 3), (0.056, 8), (0.1, 5), (-0.2, 4)])
def test_ruled_paper_may_slope_and_its_rules_be_soft(known: dict[str, Gray], fall: float, thick: int) -> None:
    gray = cv2.resize(page(known, ["2047", "9638"]), None, fx=2.6, fy=2.6)
    for row in range(-900, 2 * len(gray), 190):
        # Soft edges: a line that is found may lie on one of them, where the rule is faint.
        rules = np.full(gray.shape, 255, np.uint8)
        cv2.line(rules, (0, row), (gray.shape[1] - 1, round(row + fall * gray.shape[1])), 165, thick, cv2.LINE_AA)
        gray = np.minimum(gray, cv2.GaussianBlur(rules, (0, 0), 2))
    found, tall = find_digits(find_ink(gray))
    assert 130 < tall < 180
    assert sum(0.8 * tall < part.height < 1.3 * tall and part.width < 1.3 * tall for part in found) >= 7
    assert all(part.width < 1.5 * tall for part in found)


@pytest.mark.parametrize("paper", ["blank", "ruled", "squared"])
@pytest.mark.parametrize("thick", [4, 8, 14, 24])
@pytest.mark.parametrize(("pen", "noise"), [(0, 0), (90, 4)])
def test_a_1_is_no_rule_whatever_the_pen(paper: str, noise: int, thick: int, pen: int) -> None:
    """Large digits, as on a canvas or a card: straight strokes of three quarters of the page, across rules."""
    for number in ("11", "110", "71"):
        gray = np.full((400, 600), 255, np.uint8)
        for y in range(30, 400, 60) if paper != "blank" else ():
            cv2.line(gray, (0, y), (599, y + 6), 200, 3, cv2.LINE_AA)
        for x in range(30, 600, 60) if paper == "squared" else ():
            cv2.line(gray, (x, 0), (x + 4, 399), 200, 3, cv2.LINE_AA)
        strokes = np.full(gray.shape, 255, np.uint8)
        for x, digit in zip((140, 290, 440), number, strict=False):
            if digit == "0":
                cv2.ellipse(strokes, (x, 200), (60, 140), 0, 0, 360, pen, thick, cv2.LINE_AA)
            else:
                ways = {"1": [(x, 50), (x - 8, 350)], "7": [(x - 60, 60), (x + 50, 60), (x - 20, 350)]}
                cv2.polylines(strokes, [np.array(ways[digit])], False, pen, thick, cv2.LINE_AA)
        picture = np.minimum(gray, strokes) * 0.9 + np.random.default_rng(0).normal(0, noise or 1e-9, gray.shape)
        found, _ = find_digits(find_ink(picture.clip(0, 255).astype(np.uint8)))
        assert [part.height > 270 for part in found] == [True] * len(number), number


def test_a_rule_that_ends_is_one_among_those_that_it_crosses() -> None:
    """Squared paper of which one upright line alone is seen, and not all along; a photo's borders add a faint one."""
    gray = np.full((470, 262), 200, np.uint8)
    for y in range(10, 470, 76):
        cv2.line(gray, (0, y), (261, y + 6), 178, 3, cv2.LINE_AA)
    cv2.line(gray, (130, 0), (132, 350), 164, 3, cv2.LINE_AA)
    gray[-2:] = 190
    cv2.ellipse(gray, (190, 290), (20, 26), 0, 0, 360, 60, 6, cv2.LINE_AA)
    found, _ = find_digits(find_ink(gray))
    assert [round(part.height / 10) for part in found] == [6]


@pytest.mark.parametrize("quality", [20, 50, 80])
@pytest.mark.parametrize("left", [121, 126, 131])
def test_jpeg_around_a_pasted_picture_is_no_ink(quality: int, left: int) -> None:
    gray = np.full((84, 336), 200, np.uint8)
    for place, digit in enumerate("8011510"):
        cv2.putText(gray, digit, (30 + 40 * place, 60), cv2.FONT_HERSHEY_DUPLEX, 1.4, 110, 3, cv2.LINE_AA)
    pasted = np.full((114, 575), 255, np.uint8)
    pasted[10:94, left : left + 336] = (gray * 0.25).astype(np.uint8)
    jpeg = cv2.imdecode(cv2.imencode(".jpg", pasted, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_GRAYSCALE)
    assert len(find_digits(find_ink(jpeg))[0]) == 7


# Left, top, width and height of each; as people wrote them, uneven and sloping.
UNEVEN = {
    "1319427": (
        (40, 203, 18, 58), (69, 184, 39, 65), (113, 187, 23, 61), (158, 197, 13, 50),
        (193, 145, 60, 76), (252, 160, 61, 61), (305, 179, 38, 41),
    ),
    "30/45525674": (
        (42, 431, 87, 97), (155, 395, 69, 105),
        (96, 598, 68, 109), (203, 560, 91, 109), (316, 549, 104, 83), (431, 493, 95, 112), (555, 461, 73, 116),
        (663, 433, 72, 120), (738, 399, 123, 100), (876, 366, 126, 115),
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", UNEVEN)
def test_uneven_digits_are_put_into_lines(text: str) -> None:
    digits = text.replace("/", "")
    seen: list[Seen] = []
    for digit, (left, top, width, height) in zip(digits, UNEVEN[text], strict=True):
        said = np.eye(10, dtype=np.float32)[int(digit)]
        seen.append((Part(left, top, np.ones((height, width), np.float32)), np.zeros((28, 28), np.uint8), said))
    lines = in_lines(seen[::-1], typical_height([part for part, _, _ in seen]))
    assert "/".join("".join(str(said.argmax()) for _, _, said in line) for line in lines) == text


def test_thick_light_ink_in_a_small_black_frame_is_all_seen(known: dict[str, Gray]) -> None:
    """The estimate of the paper leaks some of it, which is no shadow's edge, though ever so much of what black is."""
    black = cv2.dilate(255 - page(known, ["204", "963"], paper=255), np.ones((17, 17), np.uint8))[70:340, 30:300]
    black[:4], black[-4:], black[:, :4], black[:, -4:] = 120, 120, 120, 120
    assert len(find_digits(find_ink(black))[0]) == 6


def test_digits_that_touch_are_cut(model: DigitClassifier, known: dict[str, Gray]) -> None:
    gray = page(known, ["2047"], gap=-16)
    parts, _ = find_digits(find_ink(gray))
    assert len(parts) < 4 and read(model, gray).text == "2047"


class Doubtful(DigitClassifier):
    """As another one, but hardly knows what a 5 is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        said = self.net(images).softmax(dim=1)
        fives = said.argmax(dim=1) == 5
        said[fives] = 0.7 / 9
        said[fives, 5] = 0.3
        return said.log()


def test_what_is_among_digits_and_of_their_size_is_one(model: DigitClassifier, known: dict[str, Gray]) -> None:
    doubtful = Doubtful()
    doubtful.net = model
    answer = read(doubtful, page(known, ["352"]))
    assert (answer.text, answer.note) == ("352", "unsure") and answer.confidence < 0.3
    answer = read(doubtful, page(known, ["55"]))
    assert (answer.text, answer.note) == ("", "not a digit")
    small = page(known, ["32"])
    ink = cv2.resize(known["5"], (14, 24), interpolation=cv2.INTER_AREA)
    small[130:154, 330:344] -= (0.7 * ink).astype(np.uint8)
    assert read(doubtful, small).text == "32"


def test_a_cut_winds_between_digits_that_interlock() -> None:
    """No straight one parts them with less than two strokes cut through."""
    picture = Image.new("L", (136, 130))
    draw = ImageDraw.Draw(picture)
    left, right = [(24, 110), (24, 16), (92, 16)], [(110, 36), (110, 112), (48, 112)]
    for line in (left, right, [(24, 64), (110, 64)]):
        draw.line(line, 255, 9)
    part = Part(0, 0, np.asarray(picture, np.float32)[11:118, 19:116] / 255)
    best = min(winding_cuts(part, part.height), key=lambda cut: abs(cut.columns[0] - 82) + 20 * cut.ink)
    start, end = (Cut(np.full(part.height, at), 0.0) for at in (0, part.width))
    pieces = between(part, start, best), between(part, best, end)
    assert best.ink < 1.6 and all(piece is not None for piece in pieces)
    boxes = [(piece.left, piece.right) for piece in pieces if piece is not None]
    assert boxes[0][0] <= 1 and boxes[0][1] >= 70, "with all of its upper bar"
    assert boxes[1][0] <= 30 and boxes[1][1] >= part.width - 1, "with all of its lower one"


def test_a_desk_beside_the_page_is_no_1(model: DigitClassifier, known: dict[str, Gray]) -> None:
    gray = page(known, ["2047"])
    for wide, lean in ((20, 0.0), (30, 0.05), (45, 0.02)):
        desk = np.arange(gray.shape[1]) < wide - lean * np.arange(len(gray))[:, None]
        for there in (desk, desk[:, ::-1]):
            assert read(model, np.where(there, 40, gray).astype(np.uint8)).text == "2047", (wide, lean)


def test_faint_ink_is_read_beside_a_desk(model: DigitClassifier, known: dict[str, Gray]) -> None:
    """What lies along the border does not tell how dark the ink is."""
    gray = (230 - 0.2 * (230.0 - page(known, ["2047", "13"]))).astype(np.uint8)
    gray[-12:] = 30
    assert read(model, gray).text == "2047/13"


@pytest.mark.parametrize("lit", [0.35, 0.5, 0.65])
def test_strokes_in_the_light_do_not_make_ink_of_it(known: dict[str, Gray], lit: float) -> None:
    gray = np.pad(page(known, ["2047", "1320"]), ((0, 250), (0, 250)), constant_values=230)
    y, x = np.mgrid[0 : 1 : len(gray) * 1j, 0 : 1 : gray.shape[1] * 1j]
    found = find_ink((gray * np.where(x + 0.2 * y < lit, 1, 0.35)).astype(np.uint8))
    assert np.median(found.ink[gray < 60]) > 0.5 and np.quantile(found.ink[gray == 230], 0.95) < found.floor


def test_the_edge_of_a_shadow_leaves_the_ink(known: dict[str, Gray]) -> None:
    """Beside it, paper in the light stands out from the shadow more than faint ink does from its paper."""
    ink = cv2.resize(np.pad(known["2"], 30), (400, 400), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    y, x = np.mgrid[-1:1:400j, -1:1:400j]
    for angle in np.radians(range(0, 360, 40)):
        light = 1 - 0.45 / (1 + np.exp(-(np.cos(angle) * x + np.sin(angle) * y) / 0.01))
        picture = cv2.GaussianBlur((230 - 0.45 * ink) * light, (0, 0), 2).clip(0, 255).astype(np.uint8)
        page = find_ink(picture)
        found, strokes = page.ink > page.floor, ink > 128
        assert (found & strokes).sum() > 2 / 3 * strokes.sum(), f"{angle:.1f}: ink is missing"
        assert (found & (ink < 20)).sum() < 0.5 * strokes.sum(), f"{angle:.1f}: light is taken for ink"


def test_the_pieces_of_a_digit_are_joined() -> None:
    picture = Image.new("L", (300, 300), 240)
    draw = ImageDraw.Draw(picture)
    draw.line([(110, 90), (105, 150), (123, 143)], 20, 12)
    draw.arc((90, 140, 190, 240), 250, 120, 20, 12)
    draw.line([(125, 80), (190, 80)], 20, 12)  # a 5's bar
    parts, _ = find_digits(find_ink(np.asarray(picture)))
    assert len(parts) == 1 and parts[0].height > 150


def test_what_is_no_number_is_bounded() -> None:
    """A picture of ten thousand specks, and one of noise, take no longer than a page of digits."""
    random = np.random.default_rng(0)
    specks = np.kron(random.random((100, 100)) < 0.3, np.ones((12, 12)))
    for gray in (255 * (1 - specks), random.integers(0, 256, (1200, 1200))):
        parts, _ = find_digits(find_ink(gray.astype(np.uint8)))
        assert len(parts) <= 500


def test_predict_leaves_tables_and_pictures(
    run: Run, trained: Path, model: DigitClassifier, known: dict[str, Gray], tmp_path: Path
) -> None:
    blank = np.full((90, 90), 200)
    for name, gray in {"b": page(known, ["2047", "9638"]), "a": page(known, ["7"]), "c": blank}.items():
        (tmp_path / name).mkdir()
        Image.fromarray(gray.astype(np.uint8)).save(tmp_path / name / "page.png")
    words = [f"ckpt_path={trained}", "b", "a", "c"]
    ended = run("predict.py", *words, "hydra.run.dir=out")
    assert ended.code == 0 and "2047/9638" in ended.out, ended.err
    tables = [(tmp_path / "out" / f"{name}.csv").read_text().splitlines() for name in ("predictions", "boxes")]
    answers, boxes = (list(csv.DictReader(lines)) for lines in tables)
    assert [(row["file"], row["answer"]) for row in answers] == [
        ("b/page.png", "2047/9638"),
        ("a/page.png", "7"),
        ("c/page.png", ""),
    ], "in the order of the pictures"
    assert answers[2]["note"] == "blank"
    assert "".join(row["digit"] for row in boxes) == "204796387"
    assert list(boxes[0]) == ["file", "line", "place", "digit", "confidence", "left", "top", "right", "bottom"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["read_page.png", "seen.png"]
    ended = run("predict.py", *words, "output=json", "hydra.run.dir=out2")
    objects = [json.loads(line) for line in ended.out.splitlines()]
    assert [one["answer"] for one in objects] == ["2047/9638", "7", ""] and len(objects[0]["digits"]) == 8
    assert "output=xml: must be table or json" in run("predict.py", *words, "output=xml").err
