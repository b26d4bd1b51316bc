"""The page to draw on: as people use it, in a real browser, and as programs do, the hostile ones too."""

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import FAST, MNIST_ROOT, ROOT, Run, Whole, needs_mnist, one_line, start
from drawn import DIGITS, answered, draw, points
from PIL import Image, ImageDraw
from test_dashboard import CHROMIUM, FLAGS, SCREENSHOTS

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")  # takes long to import

PROGRAM = "mnist_pl/demo.py"
LIMIT = 2_000_000  # bytes of a picture
TEXT = (ROOT / "README.md").read_text()


class Served(NamedTuple):
    url: str
    port: int
    uploads: Path  # where it keeps what is sent to it, until that is read

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        content = response.read().decode()
        connection.close()
        return response.status, content

    def read(self, picture: bytes, query: str = "") -> dict[str, Any]:
        status, content = self.ask("POST", f"/read{query}", picture)
        assert status == 200, content
        answer: dict[str, Any] = json.loads(content)
        return answer

    def kept(self) -> int:
        return sum(path.stat().st_size for path in self.uploads.rglob("*") if path.is_file())

    def refusal(self, *request: Any, **headers: str) -> tuple[int, str]:
        status, content = self.ask(*request, **headers)
        (reason,) = json.loads(content).values()
        assert "\n" not in reason and "Traceback" not in reason
        return status, reason


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def serve(folder: Path, *words: str) -> Iterator[Served]:
    """The program, until Ctrl-C, which ends it in one line and leaves nothing; it has complained of nothing before."""
    port = free_port()
    process = start(folder, PROGRAM, f"port={port}", *words)
    try:
        deadline = time.monotonic() + 120
        while "page " not in (folder / ".out").read_text() if (folder / ".out").exists() else True:
            assert process.is_alive() and time.monotonic() < deadline, (folder / ".err").read_text()
            time.sleep(0.05)
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nb\r\n--x--\r\n'
        kind = "multipart/form-data; boundary=x"
        status, content = Served("", port, folder).ask("POST", "/gradio_api/upload", form, Content_Type=kind)
        assert status == 200, content
        first = Path(json.loads(content)[0])
        first.unlink()
        uploads = first.parent.parent
        yield Served(f"http://127.0.0.1:{port}/", port, uploads)
        os.kill(process.pid or 0, signal.SIGINT)
        process.join(60)
        assert process.exitcode == 128 + signal.SIGINT
        assert (folder / ".err").read_text() == "stopped by SIGINT; the page is closed\n"
        assert not uploads.exists()
    finally:
        process.kill()
        process.join()


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With two runs of the embedded digits, and a broken one."""
    folder = tmp_path_factory.mktemp("demo")
    for age, name in enumerate(("new", "broken", "old")):
        shutil.copytree(trained, folder / "outputs" / name)
        best = folder / "outputs" / name / "checkpoints" / "best.ckpt"
        if name == "broken":
            best.write_bytes(best.read_bytes()[:1000])
        os.utime(best, (1e9 - 1e6 * age,) * 2)
    yield from serve(folder, f"megabytes={LIMIT / 1e6}")


@pytest.fixture(scope="module")
def served_mnist(whole: Whole, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """With a network that has seen an epoch of MNIST."""
    folder = tmp_path_factory.mktemp("demo_mnist")
    shutil.copytree(whole(*FAST, MNIST_ROOT=MNIST_ROOT), folder / "outputs" / "run")
    yield from serve(folder)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *CAMERA])
        yield browser
        browser.close()


CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a green picture with a pie
PHONE: dict[str, Any] = {"viewport": {"width": 375, "height": 740}, "has_touch": True, "is_mobile": True}
Visit = Callable[..., Any]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Visit]:
    """Opens the page; whatever it does, it asks nobody but its own server, and no script of it fails."""
    contexts, strangers, faults = [], [], []

    def visit(served: Served, **settings: Any) -> Any:
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 800}} | settings)
        contexts.append(context)
        page = context.new_page()
        known = (served.url, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(known) or strangers.append(request.url))
        page.on("pageerror", lambda error: faults.append(error))
        page.on("console", lambda message: "Security Policy" in message.text and faults.append(message.text))
        page.goto(served.url)
        page.locator("#network option").first.wait_for(state="attached")
        return page

    yield visit
    for number, context in enumerate(contexts):
        if SCREENSHOTS:
            name = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].split()[0]
            context.pages[0].screenshot(path=f"{SCREENSHOTS}/{name}-{number}.png", full_page=True)
        context.close()
    assert not strangers and not faults


def drawing(digits: str, size: int = 200, form: str = "PNG") -> bytes:
    """A picture file of digits, as a person draws them."""
    picture = Image.new("L", (size * len(digits), size), 255)
    pen = ImageDraw.Draw(picture)
    for place, digit in enumerate(digits):
        for stroke in DIGITS[int(digit)]:
            line = [((x - 250) * size / 400 + (place + 0.5) * size, y * size / 400) for x, y in stroke]
            pen.line(line, fill=0, width=size // 20, joint="curve")
    content = io.BytesIO()
    picture.save(content, form)
    return content.getvalue()


def said(page: Any) -> str:
    text: str = page.locator("#said").inner_text()
    return text


# What programs get:


def test_a_picture_is_answered_with_json(served: Served) -> None:
    answer = served.read(drawing("3"))
    assert answer["answer"] == "3" and 0.5 < answer["confidence"] <= 1
    (digit,) = answer["digits"]
    assert digit["digit"] == 3 and sum(digit["probabilities"]) == pytest.approx(1, abs=1e-4)
    assert "image" not in digit and answer["network"] == "outputs/new"
    (digit,) = served.read(drawing("3", form="JPEG"), "?images=true")["digits"]
    assert digit["digit"] == 3 and digit["image"].startswith("data:image/png;base64,")


def test_a_number_has_boxes(served: Served) -> None:
    answer = served.read(drawing("305"))
    assert answer["answer"] == "305"
    for place, digit in enumerate(answer["digits"]):
        left, top, right, bottom = digit["box"]
        assert 200 * place <= left < right <= 200 * (place + 1) and 0 <= top < bottom <= 200
    assert (answer["width"], answer["height"]) == (600, 200)


def test_networks_are_chosen_by_name(served: Served) -> None:
    networks = json.loads(served.ask("GET", "/networks")[1])
    assert [network["name"] for network in networks] == ["outputs/new", "outputs/broken", "outputs/old"]
    assert all(re.match(r"digits-cnn-adam-lr0.001-seed1, val 9\d\.\d\d%, ", network["label"]) for network in networks)
    assert served.read(drawing("3"), "?network=outputs/old")["network"] == "outputs/old"
    status, reason = served.refusal("POST", "/read?network=outputs/broken", drawing("3"))
    assert status == 400 and "not a checkpoint" in reason
    status, reason = served.refusal("POST", "/read?network=/etc/hostname", drawing("3"))
    assert status == 400 and "there is no such run" in reason


@pytest.mark.long
def test_gradios_client_gets_the_same(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "seen.png").write_bytes(drawing("305"))
    (tmp_path / "text.png").write_text("no picture")
    client = Client(served.url, verbose=False, download_files=str(tmp_path))
    answer = client.predict(handle_file(tmp_path / "seen.png"), api_name="/read")
    assert answer == served.read(drawing("305"))
    with pytest.raises(AppError, match="^not a PNG or JPEG picture$"):
        client.predict(handle_file(tmp_path / "text.png"), api_name="/read")
    with pytest.raises(AppError, match="there is no such run"):
        client.predict(handle_file(tmp_path / "seen.png"), "elsewhere", api_name="/read")
    client.close()
    assert served.kept() == 0, "what was read is removed"


@pytest.mark.parametrize("command", re.findall(r"^curl .*$", TEXT, re.MULTILINE))
def test_a_command_of_the_readme_runs(command: str, served: Served, tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(drawing("3"))
    command = command.replace("127.0.0.1:7860", f"127.0.0.1:{served.port}").replace("outputs/DATE/TIME", "outputs/old")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "outputs/old" in done.stdout or json.loads(done.stdout)["answer"] == "3"


@pytest.mark.long
@pytest.mark.parametrize("block", re.findall(r"```python\n([^`]*gradio_client[^`]*)```", TEXT))
def test_the_python_of_the_readme_runs(block: str, served: Served, tmp_path: Path) -> None:
    (tmp_path / "seven.png").write_bytes(drawing("3"))
    block = block.replace("127.0.0.1:7860", f"127.0.0.1:{served.port}")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "3" or "'answer': '3'" in done.stdout


# What is refused:


def bomb(side: int) -> bytes:
    """A PNG that claims many pixels, in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a PNG or JPEG"),
        (b"<svg onload='alert(1)'/>", "not a PNG or JPEG"),
        (b"GIF89a" + bytes(100), "not a PNG or JPEG"),
        (drawing("3")[:300], ""),
        (b"\xff\xd8\xff" + bytes(1000), ""),
        (bomb(60_000), "too many"),
        (bomb(7_000), ""),
    ],
    ids=["empty", "svg", "gif", "broken png", "broken jpeg", "bomb", "hollow"],
)
def test_a_hostile_file_is_refused_in_one_line(content: bytes, reason: str, served: Served) -> None:
    status, line = served.refusal("POST", "/read", content)
    assert status == 400 and reason in line
    assert served.read(drawing("3"))["answer"] == "3", "the next one is answered"


def test_a_large_upload_is_refused(served: Served) -> None:
    large = bytes(LIMIT + 200_000)
    parts = (large[i : i + 10**6] for i in range(0, len(large), 10**6))
    for body in (large, parts):  # with its size, and without
        status, line = served.refusal("POST", "/read", body)
        assert (status, line) == (413, "too large; at most 2 MB are read")
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + large + b"\r\n--x--\r\n"
    kind = {"Content_Type": "multipart/form-data; boundary=x"}
    assert served.refusal("POST", "/gradio_api/upload", form, **kind)[0] == 413
    assert served.kept() == 0


def test_a_page_of_another_site_is_refused(served: Served) -> None:
    for headers in (
        {"Origin": "https://example.com"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{served.port + 1}"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Host": "example.com"},  # whose name leads here
        {"Host": f"127.0.0.1.example.com:{served.port}", "Origin": f"http://127.0.0.1.example.com:{served.port}"},
    ):
        for method, path in (("POST", "/read"), ("GET", "/networks"), ("GET", "/gradio_api/info")):
            assert served.refusal(method, path, **headers)[0] == 403, headers
    assert served.ask("GET", "/", Sec_Fetch_Site="cross-site")[0] == 200, "a link to the page may be anywhere"
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert served.ask("GET", "/networks", Host=f"{name}:{served.port}")[0] == 200


@pytest.mark.parametrize(
    "path",
    ["docs", "openapi.json", "gradio_api/file=/etc/hostname", "gradio_api/proxy=https://a.hf.space", "monitoring"],
)
def test_what_gradio_opens_besides_is_closed(path: str, served: Served) -> None:
    assert served.refusal("GET", f"/{path}")[0] == 404


def test_only_uploaded_files_are_read_and_removed(served: Served, tmp_path: Path) -> None:
    """Gradio's server hands on the path that a client gives it, and fetches addresses."""
    precious = tmp_path / "precious.png"
    precious.write_bytes(drawing("3"))
    uploads = served.uploads
    meta = {"meta": {"_type": "gradio.FileData"}}
    for place in (
        str(precious),
        f"{uploads}/../../../{precious}",
        "http://127.0.0.1:9/a.png",
        "a\0b",
        str(uploads),
        None,
    ):
        for picture in (place, {"path": place}, {"path": place} | meta, [{"path": place} | meta]):
            for path in ("queue/join", "run/read", "api/read/", "call/read"):
                body = json.dumps({"data": [picture, None, False], "fn_index": 0, "session_hash": "a"})
                answer = served.refusal("POST", f"/gradio_api/{path}", body, Content_Type="application/json")
                assert answer[0] == 400, (path, picture)
    assert precious.read_bytes() == drawing("3")


def test_a_link_among_the_uploads_is_not_followed(tmp_path: Path) -> None:
    from mnist_pl.reading.demo import uploaded

    (tmp_path / "uploads").mkdir()
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "uploads" / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="not an uploaded file"):
        uploaded({"path": str(tmp_path / "uploads" / "link")}, tmp_path / "uploads")


def test_the_oldest_uploads_make_room(tmp_path: Path) -> None:
    from mnist_pl.reading.demo import make_room

    for age in range(5):
        (tmp_path / f"{age}").write_bytes(bytes(10))
        os.utime(tmp_path / f"{age}", (1e9 - age,) * 2)
    make_room(tmp_path, 30)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


def test_a_picture_that_takes_too_long_is_given_up(trained: Path, tmp_path: Path) -> None:
    from mnist_pl.reading.reader import Reader, TooSlow

    best = trained / "checkpoints" / "best.ckpt"
    (tmp_path / "three.png").write_bytes(drawing("3"))
    noise = np.random.default_rng(0).integers(0, 256, (5000, 5000), np.uint8)
    Image.fromarray(noise).save(tmp_path / "slow.png", compress_level=1)
    reader = Reader(60)
    reader.load([best])
    assert reader.read(best, tmp_path / "three.png")["answer"] == "3"
    reader.seconds = 0.05
    with pytest.raises(TooSlow, match=r"longer than 0\.05 s"):
        reader.read(best, tmp_path / "slow.png")
    reader.seconds = 60
    assert reader.read(best, tmp_path / "three.png")["answer"] == "3", "another process has taken over"
    os.kill(reader._process.pid or 0, signal.SIGKILL)
    with pytest.raises(ValueError, match="killed"):
        reader.read(best, tmp_path / "three.png")
    assert reader.read(best, tmp_path / "three.png")["answer"] == "3"
    reader.close()


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("port={taken}", "another program listens there"),
        ("megabytes=1000", "megabytes=1000: must be more than 0, and at most 100"),
        ("ckpt_path=[3]", "must be a run or a checkpoint, or several"),
        ("prot=8000", "did you mean port?"),
        ("-m", "there is one page"),
        *(
            pytest.param(word, reason, marks=pytest.mark.long)
            for word, reason in (
                ("port=0", "port=0: must be from 1 to 65535"),
                ("host=192.0.2.1", "host=192.0.2.1: not an address of this machine"),  # of no machine: RFC 5737
                ("seconds=0", "seconds=0: must be more than 0"),
                ("ckpt_path=nowhere", "ckpt_path=nowhere: there is no such file or folder"),
                ("ckpt_path=[outputs/run,{broken}]", "not a checkpoint that can be read safely"),
            )
        ),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(word: str, reason: str, run: Run, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    (tmp_path / "broken.ckpt").write_text("no checkpoint")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert reason in one_line(run(PROGRAM, word.format(taken=taken.getsockname()[1], broken="broken.ckpt")))


def test_without_a_run_it_says_so(run: Run) -> None:
    assert "run train.py first" in one_line(run(PROGRAM))


# What people see:


@pytest.mark.long
def test_the_page_answers_what_is_drawn(served: Served, visit: Visit) -> None:
    page = visit(served)
    draw(page, DIGITS[3])
    assert answered(page) == "3" and "sure" in said(page)
    assert page.locator("#bars .best dt").inner_text() == "3"
    assert page.locator("#seen img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [28, 28]
    page.keyboard.press("Control+z")
    assert answered(page) == "The answer comes here"
    for place, digit in enumerate((3, 0, 5)):
        draw(page, DIGITS[digit], shift=(-70 + 150 * place, 60), scale=0.6)
    assert answered(page) == "305"
    assert page.locator("#boxes rect").count() == page.locator("#seen img").count() == 3
    page.locator("#seen button").nth(2).click()
    assert page.locator("#bars .best dt").inner_text() == "5"
    page.keyboard.press("Escape")
    assert answered(page) == "The answer comes here" and page.locator("#boxes rect").count() == 0
    page.locator("#undo").click()
    assert answered(page) == "305", "clearing can be undone"


@pytest.mark.long
@needs_mnist
@pytest.mark.parametrize("settings", [{}, PHONE | {"color_scheme": "dark"}], ids=["desktop", "phone"])
def test_all_ten_digits_are_read(settings: dict[str, Any], served_mnist: Served, visit: Visit) -> None:
    page = visit(served_mnist, **settings)
    read = {}
    for digit, strokes in DIGITS.items():
        page.locator("#clear").click() if digit else None
        draw(page, strokes)
        read[digit] = answered(page)
    assert read == {digit: str(digit) for digit in DIGITS}


@pytest.mark.long
def test_a_finger_draws(served: Served, visit: Visit) -> None:
    page = visit(served, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 375, "nothing is wider than the telephone"
    touch = page.context.new_cdp_session(page)
    for stroke in DIGITS[3]:
        for number, (x, y) in enumerate(points(page, stroke, (0, 0), 1)):
            event = {"type": "touchMove" if number else "touchStart", "touchPoints": [{"x": x, "y": y}]}
            touch.send("Input.dispatchTouchEvent", event)
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert answered(page) == "3"
    page.locator("#undo").click()
    assert answered(page) == "The answer comes here"
    assert page.evaluate("scrollY") == 0, "drawing does not scroll"


@pytest.mark.long
def test_everything_is_reached_by_keyboard(served: Served, visit: Visit) -> None:
    page = visit(served)
    page.on("filechooser", lambda _: None)  # Playwright begins to look for them now, not while the key is being pressed
    draw(page, DIGITS[3], scale=0.8)
    answered(page)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert {"undo", "clear", "open", "photograph", "network"} & set(reached) >= {"undo", "clear", "open", "photograph"}
    page.locator("#clear").focus()
    page.keyboard.press("Enter")
    assert answered(page) == "The answer comes here"
    page.keyboard.press("Control+z")
    assert answered(page) == "3"
    with page.expect_file_chooser():
        page.keyboard.press("o")
    page.locator("#network").focus()
    page.keyboard.press("End")
    assert page.locator("#network").input_value() == "outputs/old"
    assert answered(page) == "3"


@pytest.mark.long
def test_a_picture_is_opened_pasted_dropped_and_photographed(served: Served, visit: Visit) -> None:
    page = visit(served, permissions=["camera"])
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": drawing("30")})
    page.locator("#boxes rect").nth(1).wait_for(state="attached")
    assert answered(page) == "30"
    for number, (event, place) in enumerate((("paste", "clipboardData"), ("drop", "dataTransfer"))):
        digit = "53"[number]
        page.evaluate(
            f"""async content => {{
              const file = new File([Uint8Array.from(content)], "a.webp", {{type: "image/webp"}})
              const data = new DataTransfer()
              data.items.add(file)
              document.dispatchEvent(new {{paste: ClipboardEvent, drop: DragEvent}}["{event}"]("{event}",
                {{{place}: data, bubbles: true, cancelable: true}}))
            }}""",
            list(drawing(digit, form="WEBP")),  # which the server does not read
        )
        page.locator("#text").get_by_text(digit, exact=True).wait_for()
    page.locator("#undo").click()
    assert answered(page) == "5"
    before = page.evaluate("asked")
    page.locator("#photograph").click()
    page.locator("#view").evaluate("view => view.videoWidth || new Promise(done => view.onloadeddata = done)")
    page.locator("#take").click()
    answered(page, before)
    assert page.evaluate("picture.bitmap.width") > 100, said(page)


@pytest.mark.long
def test_what_cannot_be_read_is_one_line_on_the_page(served: Served, visit: Visit) -> None:
    page = visit(served)
    for content, reason in (
        (b"no picture", "Not a PNG or JPEG picture"),
        (bomb(60_000), "too many"),
        (bytes(LIMIT + 1), "Too large: 2.0 MB, where at most 2 MB are read"),
    ):
        before = page.evaluate("asked")
        page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": content})
        assert answered(page, before) == "No answer" and reason in said(page)
    page.locator("#network").select_option("outputs/broken")
    page.locator("#network").select_option("outputs/new")
    page.keyboard.press("Escape")
    draw(page, DIGITS[3])
    assert answered(page) == "3"


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("strace"), reason="there is no strace on this machine")
def test_it_asks_nobody_else(trained: Path, tmp_path: Path) -> None:
    """From its start to its end, by the system's own record."""
    shutil.copytree(trained, tmp_path / "outputs" / "run")
    port, log = free_port(), tmp_path / "calls"
    words = ["strace", "-D", "-f", "-qq", "-e", "trace=connect,sendto,bind", "-o", str(log)]
    words += [sys.executable, "-m", "mnist_pl.demo", f"port={port}"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "https_proxy": "http://192.0.2.1:9"}
    with open(tmp_path / "out", "w") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=variables, stdout=out)
    try:
        while "page " not in (tmp_path / "out").read_text():
            assert process.poll() is None
            time.sleep(0.1)
        assert Served("", port, tmp_path).read(drawing("3"))["answer"] == "3"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    calls = log.read_text()
    assert f"sin_port=htons({port})" in calls
    assert set(re.findall(r'inet_addr\("([^"]*)"\)', calls)) == {"127.0.0.1"}
    assert "AF_INET6" not in calls.replace('inet_pton(AF_INET6, "::1"', "")
