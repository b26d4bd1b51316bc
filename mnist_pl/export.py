"""`python -m mnist_pl.export`: a trained network as a file that does without this project. `--help`."""

from mnist_pl.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mnist_pl.runs.config import CONF
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import find_all, names
from mnist_pl.runs.words import key_of
from mnist_pl.storage import as_typed, new_file, printable, short_path, write

if TYPE_CHECKING:
    from mnist_pl.data import MNISTDataModule

ELSEWHERE = ["hydra.run.dir=.", "~hydra.callbacks.claim"]  # no folder of its own


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="export")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        hydra = HydraConfig.get()
        os.chdir(hydra.runtime.cwd)  # where the names were typed, whatever hydra.job.chdir says
        paths = find_all(cfg.ckpt_path, "best.ckpt")

        from mnist_pl.reading.checkpoint import load, own_class, trained_on
        from mnist_pl.reading.export import SUFFIXES, check_format, export, probabilities
        from mnist_pl.runs.summary import git_commit

        check_format(cfg.format)
        output = None if cfg.output is None else check_output(cfg.output, cfg.format)
        model, checkpoint = load(paths, own_class(cfg.model._target_))
        print(f"{type(model).__name__} from {names(paths)}")
        data = test_images(trained_on(checkpoint).get("dataset", "mnist"), cfg.data_dir)
        images, labels = data.splits["test"]
        expected = probabilities(model, images)
        right = expected.argmax(dim=1) == labels
        accuracy = float(right.double().mean())
        print(f"{data.dataset}: {int(right.sum()):,} of {len(labels):,} test images right, {accuracy:.2%}")
        facts = {
            "made_by": f"mnist_pl {version('mnist-pl')}",
            "commit": git_commit(),
            "model": type(model).__name__,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dataset": data.dataset,
            "test_images": len(labels),
            "accuracy": round(accuracy, 6),
            "classes": classes(data.dataset, expected.shape[1]),
        }
        content, answers = export(model, cfg.format, images, expected, facts)
        same = int((answers.argmax(dim=1) == expected.argmax(dim=1)).sum())
        largest = float((answers - expected).abs().max())
        print(f"{cfg.format}: the same answer to {same:,} of them; probabilities differ by at most {largest:.1g}")
        name = f"{data.dataset}-{type(model).__name__}".lower() + SUFFIXES[cfg.format]
        file = output or Path(hydra.runtime.output_dir, name)
        try:
            write(file, content)
        except OSError as error:
            raise ValueError(f"output={error}") from error
        print(f"wrote {printable(short_path(file))}, {len(content):,} bytes")


def check_output(output: str, format: str) -> Path:
    """The path. Raises ValueError where it exists, where nothing can be written, or where its name promises another
    format."""
    from mnist_pl.reading.export import SUFFIXES

    others = [name for name, suffix in SUFFIXES.items() if as_typed(output).suffix == suffix and name != format]
    if others:
        raise ValueError(f"output={printable(output)}: is the name of format={others[0]}, and format is {format}")
    return new_file("output", output)


def test_images(dataset: str, data_dir: str | None) -> "MNISTDataModule":
    from mnist_pl.data import MNISTDataModule

    data = MNISTDataModule(dataset, data_dir, val_size=0)
    data.prepare_data()
    data.setup("test")
    return data


def classes(dataset: str, count: int) -> list[str]:
    """Their names: the ten digits, or what else the data set shows."""
    from mnist_pl.data.files import SOURCES

    names = [name.partition(" - ")[0] for name in getattr(SOURCES.get(dataset), "classes", [])]  # "0 - zero"
    return names if len(names) == count else [str(number) for number in range(count)]


if __name__ == "__main__":
    set_up_process()
    sys.path.append(os.getcwd())  # for a network of one's own
    with one_line_errors():
        if any(key_of(word) == "output" and word != "output=null" for word in sys.argv[1:]):
            sys.argv[1:] = [*sys.argv[1:], *ELSEWHERE]
        main()
