"""A network taken elsewhere answers as it does here: with onnxruntime, by torch.export, and in a browser."""

import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAST, MNIST_ROOT, ROOT, Compose, Run, Whole, needs_mnist, one_line
from hydra.utils import instantiate
from strokes import strokes
from torch import Tensor, nn

from mnist_pl.data import MNISTDataModule, to_float
from mnist_pl.data.digits import embedded_digits
from mnist_pl.export import check_output, classes
from mnist_pl.models import CNN, MLP, DigitClassifier
from mnist_pl.reading import export as exports
from mnist_pl.reading.checkpoint import load_model
from mnist_pl.reading.export import TOLERANCE, check_format, export, probabilities

CHROMIUM = shutil.which("chromium")
DRAWN = 200  # test images
PRESETS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("seed_*.yaml"))
FACTS = {"made_by": "mnist_pl 1.2.3", "commit": None, "model": "CNN", "parameters": 7, "dataset": "digits"}
FACTS |= {"test_images": 300, "accuracy": 0.5, "classes": [str(digit) for digit in range(10)]}
STRIDES = {"channels": [4, 8], "strides": [2, 1], "pools": [1, 2], "padding": 1, "batch_norm": True, "hidden": [16]}
NETWORKS: dict[str, Callable[[], DigitClassifier]] = {
    "cnn": lambda: CNN(**STRIDES, channel_dropout=[0.1, 0.1]),
    "mlp": lambda: MLP(hidden=[16], dropout=0.5, mean=0.5, std=0.5, shifts=2),
}


class Own(MLP):
    """Somebody's network, with layers and a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.GELU(), nn.Flatten(), nn.Linear(3136, 10))

    def forward(self, images: Tensor) -> Tensor:
        return 2 * super().forward(images)


FIRST, *OTHERS = [*NETWORKS.values(), Own]
MORE = [FIRST, *(pytest.param(network, marks=pytest.mark.long) for network in OTHERS)]


@pytest.fixture(scope="module")
def digits() -> Tensor:  # (300, 28, 28)
    return embedded_digits()[1][0]


def made(network: DigitClassifier) -> DigitClassifier:
    """Ready to answer, as after a training: batch norm has seen something, and answers differ."""
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_mean, -1, 1)
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.uniform_(layer.weight, -2, 2)
            nn.init.uniform_(layer.bias, -1, 1)
    nn.init.uniform_(list(network.parameters())[-1], -1, 1)
    return network.eval()


def written(network: DigitClassifier, format: str, images: Tensor, **more: Any) -> tuple[bytes, Tensor]:
    """The file, and what the network itself answers."""
    expected = probabilities(network, images)
    return export(network, format, images, expected, FACTS | more)[0], expected


@pytest.mark.parametrize("network", MORE, ids=[*NETWORKS, "own"])
def test_onnx_answers_as_pytorch(
    network: Callable[[], DigitClassifier],
    digits: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    content, expected = written(made(network()), "onnx", digits[:60])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (images,), (answers,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape, images.type) == ("images", ["N", 1, 28, 28], "tensor(float)")
    assert (answers.name, answers.shape) == ("probabilities", ["N", 10])
    for some in (slice(1), slice(7), slice(60)):
        (given,) = session.run(None, {"images": to_float(digits[some]).numpy()})
        assert given.dtype == np.float32 and np.abs(given - expected[some].numpy()).max() < TOLERANCE
    about = session.get_modelmeta()
    assert about.custom_metadata_map == {
        name: value if isinstance(value, str) else json.dumps(value) for name, value in FACTS.items()
    }
    if network is FIRST:
        monkeypatch.chdir(tmp_path)
        Path("cnn.onnx").write_bytes(content)
        (block,) = re.findall(r"```python\n([^`]*onnxruntime[^`]*)```", (ROOT / "README.md").read_text())
        exec(block, {})
        assert capsys.readouterr().out == "0.5\n"
    assert about.producer_name == "mnist_pl" and str(ROOT).encode() not in content and b"site-packages" not in content


@pytest.mark.parametrize("network", MORE, ids=[*NETWORKS, "own"])
def test_a_program_answers_as_pytorch(network: Callable[[], DigitClassifier], digits: Tensor) -> None:
    content, expected = written(made(network()), "torch", digits[:60])
    told = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO(content), extra_files=told).module()
    for some in (slice(1), slice(7), slice(60)):
        assert (program(to_float(digits[some])) - expected[some]).abs().max() < TOLERANCE
    assert json.loads(told["metadata.json"]) == FACTS
    assert str(ROOT).encode() not in content and b"site-packages" not in content


def test_what_a_format_cannot_express_is_refused(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    class Branching(MLP):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images if images.sum().item() >= 0 else -images)

    with pytest.raises(
        ValueError, match=r"^format=torch: torch.export cannot follow Branching \(Could not guard .*\)$"
    ):
        written(made(Branching()), "torch", digits[:9])
    with pytest.raises(ValueError, match="^format=html: Own is not a plain sequence of layers .*; format=onnx may do$"):
        written(made(Own()), "html", digits[:9])
    for layer in (nn.GELU(), nn.Conv2d(1, 2, 3, dilation=2), nn.MaxPool2d(3, ceil_mode=True), nn.Linear(28, 28)):
        network = MLP()
        network.net = nn.Sequential(nn.Sequential(layer), nn.Flatten())
        shown = re.escape(str(layer))
        with pytest.raises(ValueError, match=rf"^format=html: has no layer as {shown} of MLP; format=onnx may do$"):
            written(network.eval(), "html", digits[:9])
    network = made(MLP(hidden=[16]))
    expected = probabilities(network, digits[:9])
    for wrong in (expected.flip(1), expected * torch.nan):
        with pytest.raises(
            ValueError, match="^format=html: its probabilities differ from the network's by .*; not written"
        ):
            export(network, "html", digits[:9], wrong, FACTS)
    monkeypatch.setattr(exports, "find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(ValueError, match=r'^format=onnx: needs onnxruntime; pip install -e "\.\[export\]"$'):
        check_format("onnx")
    with pytest.raises(ValueError, match="^format=pdf: must be one of onnx, torch, html$"):
        check_format("pdf")


def test_outputs_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.html").touch()
    (tmp_path / "folder").mkdir()
    assert check_output("new/page.html", "html") == Path("new/page.html") and not (tmp_path / "new").exists()
    for output, reason in {
        "there.html": "exists, and is not replaced",
        "folder": "is a folder; name a file in it",
        "there.html/page.html": "nothing can be written in there.html",
        "digits.onnx": "is the name of format=onnx, and format is html",
    }.items():
        with pytest.raises(ValueError, match=f"^output={re.escape(output)}: {reason}"):
            check_output(output, "html")
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, everything is writable
    with pytest.raises(ValueError, match="^output=folder/page.html: nothing can be written in folder"):
        check_output("folder/page.html", "html")


def test_the_classes_are_those_of_the_data_set() -> None:
    assert classes("mnist", 10) == classes("digits", 10) == [str(digit) for digit in range(10)]
    assert classes("fashion_mnist", 10)[-1] == "Ankle boot" and classes("kmnist", 10)[0] == "o"
    assert classes("mnist", 11)[-1] == "10"


def test_the_command(run: Run, trained: Path, tmp_path: Path) -> None:
    ended = run("mnist_pl/export.py", "-m", f"ckpt_path={trained}", "format=torch,html")
    assert ended.code == 0, ended.err
    accuracy = json.loads((trained / "summary.json").read_text())["test/acc"]
    assert f"digits: {round(300 * accuracy)} of 300 test images right, {accuracy:.2%}" in ended.out
    assert (
        len(re.findall(r"the same answer to 300 of them; probabilities differ by at most \S+$", ended.out, re.M)) == 2
    )
    names = sorted(path.name for path in tmp_path.glob("exports/*/*/?/*") if path.name[0] != ".")
    assert names == ["digits-cnn.html", "digits-cnn.pt2"]
    words = ["mnist_pl/export.py", f"ckpt_path={trained}", "format=html", "output=new/page.html"]
    before = set(tmp_path.iterdir())
    assert run(*words).code == 0
    assert set(tmp_path.iterdir()) - before == {tmp_path / "new"}, "with output=, no folder of its own"
    content = (tmp_path / "new" / "page.html").read_bytes()
    assert "output=new/page.html: exists, and is not replaced" in one_line(run(*words))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "page.html").read_bytes() == content


# In a browser.


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


Open = Callable[[bytes | Path], Any]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """A page from its file, on a phone; it has to ask for nothing, and say nothing on the console."""
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    said: list[str] = []

    def opened(content: bytes | Path) -> Any:
        file = content if isinstance(content, Path) else tmp_path / f"{len(said)}.html"
        if isinstance(content, bytes):
            file.write_bytes(content)
        page = context.new_page()
        page.on("request", lambda request: said.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield opened
    assert [text for text in said if not re.fullmatch(r"file://\S+\.html|data:,", text)] == []
    context.close()


def answers(page: Any, images: Tensor) -> Tensor:  # (N, 28, 28) uint8 -> (N, 10), by the page's own function
    pixels = images.flatten(1).tolist()
    return torch.tensor(page.evaluate("(images) => images.map(probabilities)", pixels))


@pytest.mark.parametrize("network", MORE[:2], ids=NETWORKS)
def test_a_page_answers_as_pytorch(network: Callable[[], DigitClassifier], open_page: Open, digits: Tensor) -> None:
    content, expected = written(made(network()), "html", digits[:20])
    page = open_page(content)
    assert (answers(page, digits[:20]) - expected).abs().max() < 1e-5
    assert page.locator("#problem").count() == 0
    broken = content.replace(b'"mean": ', b'"mean": 1')
    assert "does not compute what the network does" in open_page(broken).locator("#problem").inner_text()


def test_a_digit_is_drawn_and_cleared(open_page: Open, digits: Tensor) -> None:
    """With a mouse, a finger and keys; what is shown is what the network answers."""
    network = made(MLP(hidden=[16]))
    page = open_page(written(network, "html", digits[:9])[0])
    place = page.locator("#paper").bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 390, "as wide as a phone at the most"
    assert page.evaluate("document.documentElement.scrollWidth") == 390

    def at(x: float, y: float) -> tuple[float, float]:
        return place["x"] + x * place["width"], place["y"] + y * place["height"]

    def shown() -> tuple[str, Tensor]:
        page.evaluate("new Promise(requestAnimationFrame)")
        pixels = page.evaluate("Array.from(drawn.pixels)")
        return page.locator("#answer").inner_text(), torch.tensor(pixels, dtype=torch.uint8).view(1, 28, 28)

    assert shown()[0] == "?" and page.locator("#clear").is_disabled()
    page.mouse.move(*at(0.3, 0.2))
    page.mouse.down()
    for point in ((0.7, 0.2), (0.45, 0.8)):
        page.mouse.move(*at(*point), steps=3)
    page.mouse.up()
    page.mouse.move(*at(0.1, 0.9))  # the pen is up
    text, image = shown()
    assert page.evaluate("lines.at(-1).at(-1)") == pytest.approx([0.45, 0.8], abs=0.01)
    assert page.locator("[role=status]").inner_text().startswith(f"{text}, "), "it is told to a screen reader"
    rows, columns = np.nonzero(image[0].numpy() > 64)
    assert 18 <= np.ptp(rows) + 1 <= 20 and image.max() == 255, "20 pixels high"
    centre = [(image[0].sum(axis).double() @ torch.arange(28.0).double() / image.sum()).item() for axis in (0, 1)]
    assert centre == pytest.approx([14, 14], abs=0.5)
    expected = probabilities(network, image)[0]
    assert text == str(int(expected.argmax()))
    percents = [float(row.rstrip(" %")) for row in page.locator(".percent").all_inner_texts()]
    assert percents == pytest.approx((100 * expected).tolist(), abs=0.51)
    page.touchscreen.tap(*at(0.2, 0.2))
    assert page.evaluate("lines.length") == 2
    page.keyboard.press("Control+z")
    assert torch.equal(shown()[1], image)
    page.keyboard.press("Escape")
    assert shown()[0] == "?" and not shown()[1].any()


def test_a_strangers_words_stay_words(open_page: Open, digits: Tensor) -> None:
    """Though they cannot choose the network's name: what comes from a checkpoint is text, and nothing runs or loads."""
    evil = "</script><script>window.ran = 1</script><img src='https://example.org/x' onerror='window.ran = 1'>"
    names = [evil, *"123456789"]
    page = open_page(written(made(MLP(hidden=[4])), "html", digits[:9], model=evil, classes=names)[0])
    assert evil in page.locator("footer").inner_text()
    assert page.locator("#bars .name").first.inner_text() == evil
    assert page.evaluate("window.ran === undefined") and page.locator("img").count() == 0
    policy = page.locator("meta[http-equiv]").get_attribute("content")
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy


@pytest.mark.long
def test_the_networks_of_all_presets(compose: Compose, open_page: Open, digits: Tensor) -> None:
    models = {str(cfg.model): cfg.model for cfg in (compose(f"experiment={name}") for name in PRESETS)}
    assert len(PRESETS) == 7 and len(models) == 5, "three have the same"
    for model in models.values():
        network = made(instantiate({**model, "optimizer": None, "scheduler": None}, _convert_="all"))
        content, expected = written(network, "html", digits[:20])
        assert (answers(open_page(content), digits[:20]) - expected).abs().max() < 1e-5, model


# A pen's events, as a browser tells of them; a real mouse moves once a frame, and these are thousands.
DRAW = """async (lines) => {
  const { left, top, width, height } = paper.getBoundingClientRect();
  document.querySelector("#clear").click();
  for (const line of lines)
    line.forEach(([x, y], index) => {
      const last = index === line.length - 1 ? ["pointerup"] : [];
      for (const type of [index ? "pointermove" : "pointerdown", ...last])
        paper.dispatchEvent(new PointerEvent(type, {
          pointerId: 1, pointerType: "pen", button: type === "pointermove" ? -1 : 0,
          clientX: left + x * width, clientY: top + y * height,
        }));
    });
  await new Promise(requestAnimationFrame);
  return [Array.from(drawn.pixels), drawn.probabilities, document.querySelector("#answer").textContent];
}"""


@pytest.mark.long
@needs_mnist
def test_test_digits_are_drawn(run: Run, whole: Whole, open_page: Open, tmp_path: Path) -> None:
    """A network of MNIST in each format by the command, and 200 test images drawn again by a pen on the page."""
    pytest.importorskip("onnxruntime")
    trained = whole(*FAST, MNIST_ROOT=MNIST_ROOT)
    ended = run("mnist_pl/export.py", "-m", f"ckpt_path={trained}", "format=onnx,torch,html", MNIST_ROOT=MNIST_ROOT)
    assert ended.code == 0, ended.err
    assert ended.err == "" and len(ended.out.splitlines()) < 20, "the exporters are quiet"
    differences = re.findall(r"the same answer to (\S+) of them; probabilities differ by at most (\S+)", ended.out)
    assert len(differences) == 3 and all(int(same.replace(",", "")) >= 9_999 for same, _ in differences)
    assert max(float(largest) for _, largest in differences) < 1e-5
    (file,) = tmp_path.glob("exports/**/*.html")
    page = open_page(file)
    data = MNISTDataModule("mnist", MNIST_ROOT, val_size=0)
    data.setup("test")
    images, labels = (part[:DRAWN] for part in data.splits["test"])
    network, _ = load_model(trained / "checkpoints" / "best.ckpt")
    assert (answers(page, images) - probabilities(network, images)).abs().max() < 1e-5
    seen, given, texts = zip(*(page.evaluate(DRAW, lines) for lines in strokes(images.numpy())), strict=True)
    expected = probabilities(network, torch.tensor(seen, dtype=torch.uint8).view(-1, 28, 28))
    assert (torch.tensor(given) - expected).abs().max() < 1e-5
    assert [int(text) for text in texts] == expected.argmax(dim=1).tolist()
    assert (expected.argmax(dim=1) == labels).float().mean() > 0.95, "MNIST's form, so that they are read"
