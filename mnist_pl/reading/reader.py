"""A process that reads pictures for a server: one that takes too long, or kills it, costs only that process."""

import base64
import io
import os
import signal
import threading
import traceback
from collections.abc import Iterable
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_pl.storage import one_line

if TYPE_CHECKING:
    from mnist_pl.models import DigitClassifier
    from mnist_pl.reading.numbers import Answer

KEPT = 8  # networks in memory, those that were asked last
NEEDED = ("torch", "lightning", "mnist_pl.reading.checkpoint", "mnist_pl.reading.numbers")  # seconds to import
STARTING = 120  # seconds
# From a process that has imported what is needed, the next one starts in milliseconds.
PROCESSES: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")


class TooSlow(ValueError):
    """The time limit, or too many before."""


class Reader:
    """Reads one picture after the other, in a process of its own: each within `seconds`, and as many again waiting."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._turn = threading.Lock()
        self._start()

    def _start(self) -> None:
        PROCESSES.set_forkserver_preload(list(NEEDED))
        self._pipe, theirs = PROCESSES.Pipe()
        self._process: BaseProcess = PROCESSES.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the one process is the end of the pipe
        self._started = False

    def load(self, checkpoints: Iterable[Path]) -> None:
        """Raises ValueError where one of them holds no network; only then are pictures waited for."""
        for checkpoint in checkpoints:
            self.read(checkpoint, None)

    def read(self, checkpoint: Path, picture: Path | None) -> Any:
        """The answer to a picture file, as `in_words` gives it; None without one, once the checkpoint is loaded.

        Raises ValueError where the file is no picture, or the checkpoint no network; TooSlow, where it takes too long.
        """
        if not self._turn.acquire(timeout=self.seconds):
            raise TooSlow("busy with other pictures; try again")
        try:
            return self._answer(checkpoint, picture)
        finally:
            self._turn.release()

    def _answer(self, checkpoint: Path, picture: Path | None) -> Any:
        try:
            self._pipe.send((checkpoint, picture))
            if not self._pipe.poll(self.seconds if self._started else STARTING):
                self._restart()
                raise TooSlow(f"took longer than {self.seconds:g} s, and was given up")
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as end:
            self._restart()
            raise ValueError("the process that read it was killed, perhaps because memory ran out") from end
        self._started = True
        if error is not None:
            raise ValueError(error)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def _restart(self) -> None:
        self.close()
        self._start()


def _work(pipe: Connection) -> None:
    """In the reading process: checkpoints and pictures in, answers and errors out, until nobody is left to ask."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C, which the terminal sends to all
    import cv2
    import torch

    from mnist_pl.reading.checkpoint import load_model
    from mnist_pl.reading.numbers import read
    from mnist_pl.reading.pictures import load

    torch.set_num_threads(1)  # a picture is too small to share out, and the server wants the other core
    cv2.setNumThreads(1)
    networks: dict[tuple[Path, int], DigitClassifier] = {}
    while True:
        try:
            checkpoint, picture = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            name = checkpoint, os.stat(checkpoint).st_mtime_ns  # a run that is in training writes a better one
            if name not in networks:
                networks[name] = load_model(checkpoint)[0]
            networks[name] = networks.pop(name)
            while len(networks) > KEPT:
                del networks[next(iter(networks))]
            if picture is None:
                pipe.send((None, None))
                continue
            gray = load(picture)
            pipe.send((in_words(read(networks[name], gray), gray.shape[1], gray.shape[0]), None))
        except (ValueError, OSError) as error:
            pipe.send((None, one_line(error)))
        except Exception as error:  # a fault of ours, which must not end the server
            traceback.print_exc()
            pipe.send((None, f"cannot be read ({type(error).__name__}: {one_line(error)})"))


def in_words(answer: "Answer", width: int, height: int) -> dict[str, Any]:
    """`Answer.as_dict`, also of what was refused, with the images that the network saw (a PNG as a data URL).

    `width` and `height` are of the picture that the boxes are on: large ones are reduced before they are read.
    """
    digits, refused = (
        [{**digit.as_dict(), "image": _png(digit.image)} for digit in some] for some in (answer.digits, answer.refused)
    )
    return {**answer.as_dict(), "digits": digits, "refused": refused, "width": width, "height": height}


def _png(image: Any) -> str:  # (28, 28) uint8
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
