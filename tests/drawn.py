"""Ten digits as pointer events, for the page of mnist_pl.demo."""

from typing import Any

Strokes = list[list[tuple[int, int]]]  # points x, y on the page's paper, which is 500 by 400
DIGITS: dict[int, Strokes] = {
    0: [[(250, 80), (190, 110), (170, 200), (190, 290), (250, 320), (310, 290), (330, 200), (310, 110), (250, 80)]],
    1: [[(250, 80), (250, 200), (250, 320)]],
    2: [[(180, 130), (210, 90), (260, 80), (310, 100), (315, 150), (280, 210), (220, 270), (175, 318), (330, 315)]],
    3: [[(185, 105), (240, 80), (300, 95), (310, 145), (275, 185), (235, 195), (290, 205), (325, 250), (305, 305)]],
    4: [[(220, 80), (195, 150), (175, 220), (250, 220), (335, 220)], [(290, 130), (288, 220), (285, 325)]],
    5: [[(320, 85), (205, 85), (195, 185), (250, 170), (310, 195), (325, 255), (290, 310), (235, 322), (180, 300)]],
    6: [[(300, 80), (235, 130), (190, 210), (185, 280), (225, 320), (285, 315), (310, 270), (285, 225), (190, 260)]],
    7: [[(175, 85), (250, 88), (325, 85), (290, 170), (255, 250), (235, 325)]],
    8: [[(305, 110), (255, 80), (200, 105), (205, 155), (255, 195), (310, 240), (305, 300), (250, 325), (195, 300)]],
    9: [[(310, 130), (270, 85), (205, 95), (190, 150), (225, 195), (285, 185), (312, 130), (312, 200), (300, 325)]],
}
DIGITS[3][0] += [(240, 325), (180, 300)]
DIGITS[8][0] += [(195, 245), (250, 198), (300, 155), (305, 110)]


ANSWERED = """number => new Promise((done, failed) => {
  const end = performance.now() + 30_000
  const look = () => {
    if (asked > number && +document.getElementById("text").dataset.answered === asked) done()
    else performance.now() < end ? setTimeout(look, 5) : failed("no answer")
  }
  look()
})"""


def points(page: Any, stroke: list[tuple[int, int]], shift: tuple[int, int], scale: float) -> list[tuple[float, float]]:
    """Of the window, for those of the paper."""
    box = page.locator("#ink").bounding_box()
    unit = box["width"] / 500
    return [(box["x"] + (x * scale + shift[0]) * unit, box["y"] + (y * scale + shift[1]) * unit) for x, y in stroke]


def draw(page: Any, strokes: Strokes, shift: tuple[int, int] = (0, 0), scale: float = 1) -> None:
    """By mouse."""
    for stroke in strokes:
        start, *others = points(page, stroke, shift, scale)
        page.mouse.move(*start)
        page.mouse.down()
        for point in others:
            page.mouse.move(*point, steps=4)
        page.mouse.up()


def answered(page: Any, after: int = -1) -> str:
    """The answer's text, once it is that of what was drawn or opened last, and later than question `after`."""
    page.evaluate(ANSWERED, after)
    text: str = page.locator("#text").inner_text()
    return text
