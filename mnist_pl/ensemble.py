"""`python -m mnist_pl.ensemble`: trained networks in one checkpoint, as one network. `--help`."""

from mnist_pl.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()  # before the imports, which take their time

import io

import hydra
from omegaconf import DictConfig

from mnist_pl.runs.config import CONF
from mnist_pl.runs.errors import one_line_errors, set_up_process
from mnist_pl.runs.folders import find_all, name
from mnist_pl.storage import as_word, new_file, printable, short_path, write


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="ensemble")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        if cfg.ckpt_path is None:
            raise ValueError("ckpt_path: names the networks to join, as ckpt_path=[A,B]; or a sweep, for all its jobs")
        paths = find_all(cfg.ckpt_path, "best.ckpt")
        output = new_file("output", cfg.output)

        import torch

        from mnist_pl.reading.checkpoint import join, own_class

        model, checkpoint = join(paths, own_class(cfg.model._target_), vote=cfg.vote, shifts=cfg.shifts)
        for path, network in zip(paths, model.net, strict=True):
            print(f"{type(network).__name__} from {printable(name(path))}")
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            write(output, content.getbuffer())
        except OSError as error:
            raise ValueError(f"output={error}") from error
        print(f"wrote {printable(short_path(output))}, {content.tell():,} bytes")
        print(f"predict   python predict.py {as_word('ckpt_path', output)}")


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        main()
