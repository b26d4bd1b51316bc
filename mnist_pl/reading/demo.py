"""A page to draw on, in a browser, and the server that answers it: Gradio's API, and a page of our own.

Gradio's own pages fetch fonts and scripts from elsewhere, and take a tenth of a second to hand a drawing over. Of
Gradio's routes, those that its client needs are open, and nobody can have the server fetch anything.
"""

import base64
import errno
import hashlib
import ipaddress
import json
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mnist_pl.reading.reader import Reader, TooSlow

PAGE = Path(__file__).with_name("demo.html")
PORT = 7860  # Gradio's own; the next free one of a hundred
MEGABYTE = 1_000_000
AROUND = 100_000  # bytes of a request around the picture's own
UPLOADS = 20  # files that Gradio's client has sent, and not had read yet, of the largest size
DRAINED = 10  # times as much as is allowed is received, so that the sender gets to hear why it is refused

# What Gradio's client asks for, and no more: others proxy, fetch and list.
OPEN = re.compile(
    r"/|/read|/networks|/config/?|/gradio_api/(info/?|upload|startup-events|queue/(join|data)"
    r"|heartbeat/\w+|(call|run|api)/read(/\w*)?)"
)
JSON = re.compile(r"/gradio_api/(queue/join|(call|run|api)/read)/?")
Scope = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Any], Any]


class Network(NamedTuple):
    name: str  # by which it is asked for: its path, as short as can be
    label: str  # for people
    checkpoint: Path


class Refusal(Exception):
    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason


class Gate:
    """In front of all routes: only the page itself and programs may ask, little enough, and for what is open.

    A browser says where a request comes from (Origin, Sec-Fetch-Site), and by which name it found the server (Host),
    which a page of another site cannot forge, even where it has its own name lead here (DNS rebinding).
    """

    def __init__(self, app: Any, host: str, limit: int, uploads: Path) -> None:
        self.app, self.limit, self.uploads = app, limit + AROUND, uploads
        self.host, self.is_local = host, _is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        started = False

        async def answer(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self.check(scope["path"], headers)
            limit = AROUND if JSON.fullmatch(scope["path"]) else self.limit
            if int(headers.get("content-length", 0)) > limit:
                await self.refuse_size(receive, True)
            if scope["method"] == "POST" and JSON.fullmatch(scope["path"]):
                receive = await self.uploads_alone(receive)
            if scope["path"].endswith("/upload"):
                make_room(self.uploads, UPLOADS * self.limit)
            await self.app(scope, self.counted(receive), answer)
        except Refusal as refusal:
            if not started:
                from starlette.responses import JSONResponse

                await JSONResponse({"error": refusal.reason}, refusal.code)(scope, receive, send)

    def check(self, path: str, headers: dict[str, str]) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        here = socket.gethostname().lower()
        mine = _is_address(name) or name in (self.host.lower(), here, here.partition(".")[0] + ".local")
        if not _is_loopback(name) and (self.is_local or not mine):
            raise Refusal(403, "asked for by a name that is not its own; the page is where the terminal says")
        elsewhere = origin is not None and origin.partition("://")[2] != host
        if path != "/":  # to which a link may be anywhere
            elsewhere |= headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere:
            raise Refusal(403, "only the page itself may ask, not one of another site")
        if not OPEN.fullmatch(path):
            raise Refusal(404, "there is nothing here; the page is at /, and its API at /read")

    async def refuse_size(self, receive: Receive, more: bool) -> None:
        received = 0
        while more and received < DRAINED * self.limit:
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        raise Refusal(413, f"too large; at most {(self.limit - AROUND) / MEGABYTE:g} MB are read")

    def counted(self, receive: Receive) -> Receive:
        received = 0

        async def receive_some() -> dict[str, Any]:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                await self.refuse_size(receive, message.get("more_body", False))
            return message

        return receive_some

    async def uploads_alone(self, receive: Receive) -> Receive:
        """Gradio hands on whatever path it is given, and fetches what has an address in place of a path."""
        content, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "nobody is left to answer")
            content, more = content + message.get("body", b""), message.get("more_body", False)
            if len(content) > AROUND:
                await self.refuse_size(receive, more)
        try:
            asked = json.loads(content)
            picture, *others = asked["data"]
            uploaded(picture, self.uploads)
            if asked.get("fn_index") not in (None, 0) or not all(isinstance(one, str | bool | None) for one in others):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise Refusal(400, "data: must be an uploaded file, then perhaps a network's name") from None
        given = False

        async def give() -> dict[str, Any]:
            nonlocal given
            if given:
                return await receive()  # which tells when the connection ends
            given = True
            return {"type": "http.request", "body": content, "more_body": False}

        return give


def uploaded(picture: Any, folder: Path) -> Path:
    """The file that Gradio's client has uploaded. Raises ValueError where it is not one in `folder`: it will be
    removed, whatever a client says."""
    path = picture.get("path") if isinstance(picture, dict) else None
    if not isinstance(path, str) or "\0" in path:
        raise ValueError("not an uploaded file")
    file = Path(path).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        raise ValueError("not an uploaded file, or one that has been read before")
    return file


def _is_address(name: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(name))
    return False


def _is_loopback(name: str) -> bool:
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def make_room(folder: Path, limit: int) -> None:
    """Removes the oldest files until they are no more than `limit` bytes in all."""
    files = sorted(((path.stat().st_mtime, path) for path in folder.glob("**/*") if path.is_file()), reverse=True)
    for _, path in files:
        limit -= path.stat().st_size
        if limit < 0:
            path.unlink(missing_ok=True)


def serve(
    networks: Callable[[], list[Network]],
    named: int,
    folder: Path,
    host: str,
    port: int | None,
    seconds: float,
    megabytes: float,
) -> str:
    """Starts a server in a thread, which ends with the process; returns the page's address.

    `networks` are those that can be chosen, asked again whenever the page is opened; the first answers where none is
    chosen, and the first `named` have to be readable. `folder` is for the pictures that are sent, until they are read.
    Raises ValueError where a network that was named cannot be read, or the address not be had.
    """
    check_address(host, port)
    reader = Reader(seconds)  # imports torch, while this process imports Gradio
    _settle_gradio(folder)
    from gradio import Error, Server
    from gradio.data_classes import FileData
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse

    limit = round(megabytes * MEGABYTE)
    text = PAGE.read_text(encoding="utf-8").replace("{{limit}}", str(limit))
    headers = _headers(text)
    gate = Middleware(Gate, host=host, limit=limit, uploads=folder)
    server = Server(title="mnist_pl", openapi_url=None, docs_url=None, redoc_url=None, middleware=[gate])

    def answer(picture: Path, network: str | None, images: bool) -> dict[str, Any]:
        found = networks()
        one = next((one for one in found if network in (None, one.name)), None)
        if one is None:
            raise ValueError(f"network={network}: there is no such run; GET /networks lists them")
        said = reader.read(one.checkpoint, picture)
        if not images:
            del said["refused"]
            for digit in said["digits"]:
                del digit["image"]
        return {**said, "network": one.name}

    @server.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(text, headers=headers)

    @server.get("/networks")
    def list_networks() -> JSONResponse:
        return JSONResponse([{"name": one.name, "label": one.label} for one in networks()])

    @server.post("/read")
    async def read_body(request: Request, network: str | None = None, images: bool = False) -> JSONResponse:
        descriptor, name = tempfile.mkstemp(dir=folder)
        try:
            with open(descriptor, "wb") as file:
                async for part in request.stream():
                    file.write(part)
            return JSONResponse(await run_in_threadpool(answer, Path(name), network, images))
        except TooSlow as error:
            return JSONResponse({"error": str(error)}, 503)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, 400)
        finally:
            os.unlink(name)

    @server.api(name="read", concurrency_limit=2)
    def read_uploaded(picture: FileData, network: str | None = None, images: bool = False) -> dict[str, Any]:
        """The digits on a picture file, PNG or JPEG."""
        try:
            path = uploaded(picture, folder)
            try:
                return answer(path, network, images)
            finally:
                path.unlink(missing_ok=True)
        except ValueError as error:
            raise Error(str(error), print_exception=False) from None

    reader.load(one.checkpoint for one in networks()[:named])
    off = ("share", "inline", "enable_monitoring", "run_history", "mcp_server", "ssr_mode", "pwa", "_frontend")
    settings: dict[str, Any] = {**dict.fromkeys(off, False), "quiet": True, "prevent_thread_lock": True}
    settings |= {"root_path": "", "max_file_size": limit, "state_session_capacity": 100}
    _, url, _ = server.launch(server_name=host, server_port=free_port(host) if port is None else port, **settings)
    return str(url)


def _settle_gradio(folder: Path) -> None:
    """Before Gradio is imported: no analytics, nothing from the environment that opens more, no proxy to itself."""
    for name in list(os.environ):
        if name.startswith("GRADIO_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            del os.environ[name]
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells that Gradio looks whether its server is there


def check_address(host: str, port: int | None) -> None:
    """Raises ValueError where nothing can listen there."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port={port}: another program listens there; leave it out for the next one") from None
        if error.errno == errno.EACCES:
            raise ValueError(f"port={port}: ports below 1024 are the system's; take one such as {PORT}") from None
        raise ValueError(f"host={host}: not an address of this machine; 127.0.0.1, or 0.0.0.0 for all") from None


def free_port(host: str) -> int:
    for port in range(PORT, PORT + 100):
        with suppress(ValueError):
            check_address(host, port)
            return port
    raise ValueError(f"port: none of {PORT} to {PORT + 99} is free; say port=9000")


def _headers(page: str) -> dict[str, str]:
    """The page asks nobody but its own server, and no other page may frame it."""
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return {
        "content-security-policy": f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; media-src blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        "form-action 'none'",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
    }
