"""TensorBoard has the data of every tab that the README names, and shows it in a real browser."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Train, execute
from PIL import Image, ImageColor

from mnist_pl.figures import plots

IN_BROWSER = pytest.mark.long
CHROMIUM = shutil.which("chromium")
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder to keep them in, to be looked at
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
RUNS = {  # what TensorBoard calls them, and how they were started
    "outputs/run/digits-cnn-adam-lr0.001-seed1": "",  # the default one
    "outputs/sgd/digits-mlp-sgd-lr0.1-batch_size16-max_epochs2-seed0": (
        "model=mlp optimizer=sgd optimizer.lr=0.1 data.batch_size=16 seed=0 trainer.max_epochs=2"
    ),
    "multirun/0/digits-seed_mlp-lr0.01-max_epochs1-seed3": "-m experiment=seed_mlp trainer.max_epochs=1 seed=3",
    "outputs/failed/digits-cnn-sgd-lr1e+30-none-seed1": "optimizer=sgd scheduler=none optimizer.lr=1e30",
}
COLUMNS = {"data", "model", "optimizer", "lr", "batch_size", "epochs", "seed", "parameters"}
COMPARED = {"val/acc", "val_best/acc", "test/acc"}
PICTURES = {f"view_{name}" for name in ("samples", "confusion", "mistakes", "filters", "calibration", "curves")}
SESSIONS = {  # what the HParams tab asks for when it is sorted by test accuracy
    "experimentName": "",
    "allowedStatuses": [f"STATUS_{status}" for status in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
    "colParams": [
        {"metric": {"group": "", "tag": "val/acc"}},
        {"metric": {"group": "", "tag": "test/acc"}, "order": "ORDER_DESC", "missingValuesFirst": False},
    ],
    "startIndex": 0,
    "sliceSize": 100,
}

Ask = Callable[..., Any]


def server_without_a_port(folder: Path) -> Ask:
    """TensorBoard's own server on the runs below a folder, in this process; it gives what a tab would be given."""
    from tensorboard.backend.application import TensorBoardWSGI
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
    from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
    from tensorboard.plugins.image.images_plugin import ImagesPlugin
    from tensorboard.plugins.pr_curve.pr_curves_plugin import PrCurvesPlugin
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from tensorboard.plugins.scalar.scalars_plugin import ScalarsPlugin
    from tensorboard.plugins.text.text_plugin import TextPlugin
    from werkzeug.test import Client

    events = EventMultiplexer(size_guidance=dict.fromkeys(("scalars", "images", "tensors"), 0))  # 0: all of them
    events.AddRunsFromDirectory(str(folder))
    events.Reload()
    data = MultiplexerDataProvider(events, str(folder))
    context = TBContext(data_provider=data, logdir=str(folder), multiplexer=events)
    tabs = (
        ScalarsPlugin,
        CustomScalarsPlugin,
        ImagesPlugin,
        HParamsPlugin,
        PrCurvesPlugin,
        TextPlugin,
        ProjectorPlugin,
    )
    client = Client(TensorBoardWSGI([tab(context) for tab in tabs], "", data))

    def ask(path: str, body: Any = None, **query: str) -> Any:
        url = f"/data/plugin/{path}"
        answer = client.get(url, query_string=query or None) if body is None else client.post(url, json=body)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.json if answer.is_json else answer.get_data()

    return ask


@pytest.fixture
def ask(trained: Path) -> Ask:
    return server_without_a_port(trained)


@pytest.fixture
def name(trained: Path) -> str:
    """TensorBoard's, of the default run."""
    return next(iter(RUNS)).rpartition("/")[2]


# What TensorBoard itself uses:
QUIETLY = pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")


@QUIETLY
def test_the_scalars_are_those_of_the_record(ask: Ask, name: str, trained: Path) -> None:
    tags = ask("scalars/tags")
    assert list(tags) == [name]
    steps = {"train/loss_step", "train/acc_step"}
    scores = steps | {f"{stage}/{score}" for stage in ("train", "val", "test") for score in ("loss", "acc")}
    expected = scores | {f"vs_images/{tag}" for tag in scores} | {f"vs_digit/acc_{digit}" for digit in range(10)}
    expected |= {f"trainer/{tag}" for tag in ("lr", "grad_norm", "images_per_second", "seconds_per_epoch")}
    expected |= {f"trainer/{tag}" for tag in ("epoch", "images")} | {"test/calibration_error", "val_best/acc"}
    assert expected <= set(tags[name])
    groups = sorted({tag.partition("/")[0] for tag in tags[name]})
    assert groups[:4] == ["test", "train", "trainer", "val"], "what is looked at most comes first"
    record = plots.rows(trained / "metrics.csv")
    for tag in scores | {"vs_digit/acc_3"}:
        rows = [row for row in record if tag in row]
        axes = {"": "step"} | ({"vs_images/": "images"} if tag in scores else {})
        for prefix, axis in axes.items():
            points = ask("scalars/scalars", run=name, tag=prefix + tag)
            assert [step for _, step, _ in points] == [row[axis] for row in rows], prefix + tag
            assert [value for *_, value in points] == pytest.approx([row[tag] for row in rows])


@QUIETLY
def test_charts_show_training_validation_and_test_together(ask: Ask, name: str) -> None:
    tags = ask("scalars/tags")[name]
    charts = [chart for axis in ask("custom_scalars/layout")["category"] for chart in axis["chart"]]
    assert len(charts) == 4
    for chart in charts:
        matching = [[tag for tag in tags if re.search(pattern, tag)] for pattern in chart["multiline"]["tag"]]
        assert [len(found) for found in matching] == [1, 1, 1], chart


@QUIETLY
def test_hparams_has_every_run_and_no_figure_of_one_that_failed(
    train_here: Train, trained: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(trained / name, tmp_path / "whole" / name)
    with pytest.raises(SystemExit, match="NaN or infinite"):
        train_here(*list(RUNS.values())[-1].split(), "data=digits", "callbacks=minimal", folder="failed")
    failed = list(RUNS)[-1].rpartition("/")[2]
    groups = server_without_a_port(tmp_path)("hparams/session_groups", SESSIONS)["sessionGroups"]
    assert [group["name"] for group in groups] == [f"whole/{name}", f"failed/{failed}"]
    whole, stopped = ({value["name"]["tag"]: value["value"] for value in group["metricValues"]} for group in groups)
    assert all(set(group["hparams"]) >= COLUMNS for group in groups)
    assert groups[1]["hparams"]["optimizer"] == "SGD" and groups[1]["hparams"]["lr"] == 1e30
    facts = json.loads((trained / "summary.json").read_text())
    *_, newest = [row["val/acc"] for row in plots.rows(trained / "metrics.csv") if "val/acc" in row]
    expected = {"val/acc": newest, "val_best/acc": facts["val/acc"], "test/acc": facts["test/acc"]}
    assert whole == pytest.approx(expected, abs=1e-6)
    assert "test/acc" not in stopped and all(0 <= score <= 1 for score in stopped.values())


@QUIETLY
def test_the_pictures_of_the_run_are_there(ask: Ask, name: str, trained: Path) -> None:
    assert set(ask("images/tags")[name]) == PICTURES
    for tag in PICTURES:
        (shown,) = ask("images/images", run=name, tag=tag, sample="0")
        pixels = np.asarray(Image.open(io.BytesIO(ask(f"images/individualImage?{shown['query']}"))))
        with Image.open(trained / f"{tag.removeprefix('view_')}.png") as drawn:
            assert np.array_equal(pixels, np.asarray(drawn.convert("RGB"))), tag


@QUIETLY
def test_each_digit_has_a_precision_recall_curve(ask: Ask, name: str) -> None:
    assert set(ask("pr_curves/tags")[name]) == {f"digit/{digit}" for digit in range(10)}
    (curve,) = ask("pr_curves/pr_curves", run=name, tag="digit/3")[name]
    assert len(curve["precision"]) > 50 and min(curve["precision"][:-1]) > 0.05
    assert max(min(pair) for pair in zip(curve["precision"], curve["recall"], strict=True)) > 0.8


@QUIETLY
def test_the_settings_are_a_page_of_text(ask: Ask, name: str) -> None:
    (page,) = ask("text/text", run=name, tag="settings/text_summary")
    assert "_target_: mnist_pl.models.CNN" in page["text"] and "lr: 0.001" in page["text"]
    assert "${" not in page["text"]


@QUIETLY
def test_the_projector_has_test_images_in_the_colours_of_their_digits(ask: Ask, name: str) -> None:
    assert ask("projector/runs") == [name]
    (points,) = ask("projector/info", run=name)["embeddings"]
    assert points["tensorShape"][0] == 300 and points["tensorName"].startswith("last_layer")
    which = {"run": name, "name": points["tensorName"]}
    vectors = np.frombuffer(ask("projector/tensor", **which), np.float32).reshape(points["tensorShape"])
    labels = np.array(ask("projector/metadata", **which).split(), int)
    sheet = np.asarray(Image.open(io.BytesIO(ask("projector/sprite_image", **which))).convert("RGB"))
    side, columns = 28, sheet.shape[1] // 28
    inks = []
    for number in range(len(labels)):
        top, left = number // columns * side, number % columns * side
        image = sheet[top : top + side, left : left + side].reshape(-1, 3).astype(int)
        inks.append(tuple(image[image.sum(1).argmin()] // 16))
    assert len(set(zip(labels.tolist(), inks, strict=True))) >= 10 == len(set(labels.tolist()))
    for digit, color in enumerate(plots.DIGITS):
        mean = np.array(ImageColor.getrgb(color)) // 16
        assert (
            np.abs(np.array([ink for ink, label in zip(inks, labels, strict=True) if label == digit]) - mean).max() <= 1
        )
    centres = np.stack([vectors[labels == digit].mean(0) for digit in range(10)])
    nearest = ((vectors[:, None] - centres) ** 2).sum(2).argmin(1)
    assert (nearest == labels).mean() > 0.8, "like ones together"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Iterator[str]:
    """TensorBoard's, on four runs: the default one, another network, a preset, and one that failed."""
    folder = tmp_path_factory.mktemp("dashboard")
    shutil.copytree(trained, folder / "outputs" / "run")
    for name, words in list(RUNS.items())[1:]:
        place = ["hydra.run.dir=" + name.rpartition("/")[0], "hydra.sweep.dir=multirun"]
        ended = execute(folder, "train.py", *words.split(), "data=digits", *place)
        assert ended.code == ("failed" in name), ended.err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "tensorboard.main", "--logdir", ".", "--port", str(port), "--reload_interval", "2"]
    server = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if len(json.load(urllib.request.urlopen(url + "/data/runs", timeout=5))) == len(RUNS):
                break
        except OSError:
            pass
        time.sleep(0.5)
    yield url
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[[str], Any]]:
    pages = {}

    def visit(tab: str) -> Any:
        page = pages[tab] = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{address}/#{tab}")
        return page

    yield visit
    for tab, page in pages.items():
        if SCREENSHOTS:
            page.wait_for_timeout(3000)
            page.screenshot(path=f"{SCREENSHOTS}/{tab}.png")
        page.close()


def fetch(address: str, path: str, body: Any) -> Any:
    """What a tab asks the server for."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/data/{path}", data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=10))


@IN_BROWSER
def test_scalars(visit: Callable[[str], Any]) -> None:
    from playwright.sync_api import expect

    page = visit("timeseries")
    page.locator("card-view").first.wait_for()
    for run in RUNS:
        assert page.get_by_text(run).count(), run
    groups = page.locator("card-group-toolbar, .group-toolbar").all_inner_texts()
    first = [re.match("[a-z]+", name, re.IGNORECASE)[0] for name in groups[:3]]
    assert first == ["Pinned", "test", "train"], "what is looked at most comes first"
    page.locator("input[placeholder^='Filter tags']").fill("^(train|val|test)/(loss|acc)$")
    page.keyboard.press("Escape")  # the list of suggestions
    expect(page.locator("scalar-card:visible")).to_have_count(6, timeout=30_000)
    page.locator("scalar-card:visible line-chart").nth(5).wait_for()


@IN_BROWSER
def test_scores_share_axes(visit: Callable[[str], Any]) -> None:
    page = visit("custom_scalars")
    page.get_by_text("by images seen").wait_for()
    page.locator("vz-line-chart2 path.line, vz-line-chart2 canvas, vz-line-chart2 svg").nth(3).wait_for()
    assert page.locator("tf-custom-scalar-multi-line-chart-card").count() == 4


@IN_BROWSER
def test_hparams_has_every_run_and_no_figure_that_is_none(visit: Callable[[str], Any], address: str) -> None:
    page = visit("hparams")
    cells = page.locator("vaadin-grid-cell-content")
    page.get_by_text("val/acc", exact=True).first.wait_for()
    for box in page.locator("paper-checkbox, vaadin-checkbox").all():  # the columns that are not shown at first
        if box.is_visible() and box.get_attribute("aria-checked") == "false" and box.get_attribute("checked") is None:
            box.click()
    page.wait_for_timeout(1000)
    words = [text.strip() for text in cells.all_inner_texts()]
    assert set(RUNS) <= set(words) and {"CNN", "MLP", "digits"} <= set(words)
    assert not [word for word in words if word.startswith("-1")]
    groups = fetch(address, "plugin/hparams/session_groups", SESSIONS)["sessionGroups"]
    assert {group["name"] for group in groups} == set(RUNS)
    assert groups[-1]["name"] == list(RUNS)[-1], "the one that failed has no test accuracy"
    for group in groups:
        assert set(group["hparams"]) >= COLUMNS, group["name"]
        scores = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert all(0 <= score <= 1 for score in scores.values())
        assert set(scores) == COMPARED or "failed" in group["name"]


@IN_BROWSER
def test_images(visit: Callable[[str], Any]) -> None:
    page = visit("images")
    page.locator("tf-image-loader img").first.wait_for()
    for name in PICTURES:
        assert page.get_by_text(name, exact=True).count(), name
    width = page.locator("tf-image-loader img").first.evaluate("image => image.naturalWidth")
    assert width > 500


@IN_BROWSER
def test_pr_curves(visit: Callable[[str], Any]) -> None:
    page = visit("pr_curves")
    page.locator("tf-pr-curve-card").nth(9).wait_for()


@IN_BROWSER
def test_the_settings_are_text(visit: Callable[[str], Any]) -> None:
    page = visit("text")
    page.get_by_text("lr: 0.1").first.wait_for()
    assert page.get_by_text("_target_: mnist_pl.models.MLP").count() and not page.get_by_text("${").count()


@IN_BROWSER
def test_the_projector_shows_test_images_in_the_colours_of_their_digits(visit: Callable[[str], Any]) -> None:
    page = visit("projector")
    frame = page.frame_locator("iframe").frame_locator("iframe")
    frame.get_by_text("Points: 300").wait_for()
    canvas = frame.locator("vz-projector canvas").first
    seen: set[Any] = set()
    for _ in range(20):
        page.wait_for_timeout(1000)
        pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)
        colored = pixels[pixels.max(2) - pixels.min(2) > 60]
        seen = {tuple(pixel) for pixel in colored // 32}
        if len(seen) > 15:
            return
    pytest.fail(f"few colours: {seen}")
