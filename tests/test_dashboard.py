"""TensorBoard in a real browser: every tab that the README names opens and shows its data."""

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
from urllib.parse import quote

import numpy as np
import pytest
from conftest import execute
from PIL import Image

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


def fetch(address: str, path: str, **body: Any) -> Any:
    """What a tab asks the server for."""
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"{address}/data/{path}", data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=10))


def test_scalars(visit: Callable[[str], Any], address: str) -> None:
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
    tags = fetch(address, "plugin/scalars/tags")[next(iter(RUNS))]
    expected = {f"{stage}/{name}" for stage in ("train", "val", "test") for name in ("loss", "acc")}
    expected |= {f"vs_images/{tag}" for tag in expected} | {f"vs_digit/acc_{digit}" for digit in range(10)}
    expected |= {f"trainer/{name}" for name in ("lr", "grad_norm", "images_per_second", "seconds_per_epoch")}
    assert expected | {"test/calibration_error", "val_best/acc"} <= set(tags)


def test_scores_share_axes(visit: Callable[[str], Any], address: str) -> None:
    page = visit("custom_scalars")
    page.get_by_text("by images seen").wait_for()
    page.locator("vz-line-chart2 path.line, vz-line-chart2 canvas, vz-line-chart2 svg").nth(3).wait_for()
    assert page.locator("tf-custom-scalar-multi-line-chart-card").count() == 4
    run = next(iter(RUNS))
    for tag, last in (("val/acc", 205), ("vs_images/val/acc", 5 * 1297), ("vs_images/test/acc", 5 * 1297)):
        points = fetch(address, f"plugin/scalars/scalars?run={quote(run)}&tag={quote(tag)}")
        assert points[-1][1] == last, tag


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
    asked = {
        "experimentName": "",
        "allowedStatuses": [f"STATUS_{s}" for s in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
    }
    figures = [{"metric": {"group": "", "tag": tag}} for tag in ("val/acc", "val_best/acc", "test/acc")]
    sorted_by = [*figures[:2], {**figures[2], "order": "ORDER_DESC", "missingValuesFirst": False}]
    found = fetch(address, "plugin/hparams/session_groups", **asked, colParams=sorted_by, startIndex=0, sliceSize=100)
    groups = found["sessionGroups"]
    assert {group["name"] for group in groups} == set(RUNS)
    assert groups[-1]["name"] == list(RUNS)[-1], "the one that failed has no test accuracy"
    for group in groups:
        columns = "data model optimizer lr batch_size epochs seed parameters"
        assert set(columns.split()) <= set(group["hparams"]), group["name"]
        scores = {value["name"]["tag"]: value["value"] for value in group["metricValues"]}
        assert all(0 <= score <= 1 for score in scores.values())
        assert set(scores) == {"val/acc", "val_best/acc", "test/acc"} or "failed" in group["name"]


def test_images(visit: Callable[[str], Any], address: str) -> None:
    page = visit("images")
    page.locator("tf-image-loader img").first.wait_for()
    pictures = fetch(address, "plugin/images/tags")[next(iter(RUNS))]
    assert set(pictures) == {
        f"view_{name}" for name in ("samples", "confusion", "mistakes", "filters", "calibration", "curves")
    }
    for name in pictures:
        assert page.get_by_text(name, exact=True).count(), name
    width = page.locator("tf-image-loader img").first.evaluate("image => image.naturalWidth")
    assert width > 500


def test_pr_curves(visit: Callable[[str], Any], address: str) -> None:
    page = visit("pr_curves")
    page.locator("tf-pr-curve-card").nth(9).wait_for()
    run = next(iter(RUNS))
    curve = fetch(address, f"plugin/pr_curves/pr_curves?tag=digit%2F3&run={quote(run)}")[run][0]
    assert len(curve["precision"]) > 50 and min(curve["precision"][:-1]) > 0.05


def test_the_settings_are_text(visit: Callable[[str], Any]) -> None:
    page = visit("text")
    page.get_by_text("lr: 0.1").first.wait_for()
    assert page.get_by_text("_target_: mnist_pl.models.MLP").count() and not page.get_by_text("${").count()


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
