"""`resume=` and `ckpt_path=`: how a run continues from a checkpoint, from the command line to Lightning's `fit`.

1. `expand_resume` makes the settings that the run was composed with the primary configuration, before Hydra reads the
   command line; what it says comes on top. Of a sweep, it repeats the command.
2. `as_composed` has a job of a sweep that is resumed go on with its own settings.
3. `find_ensemble` and `find_start` find the checkpoints, and refuse one that does not fit, before anything is done.
4. `remember` writes the settings into the run's folder, once all was checked.
The rest is Lightning's, with `engine/resume.py` for the exact bits, and loggers that drop what came after a checkpoint.
Before 1, a job that SLURM starts anew is made a resumed one (`slurm.go_on`); before 2, the user is asked whether a
stranger's classes may run (consent.py), and the folder is locked (claim.py).
"""

import json
import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from mnist_pl.runs import plan
from mnist_pl.runs.config import Train
from mnist_pl.runs.folders import NEWEST, RESUMED, existing_checkpoint, find, find_all, newest_run, said
from mnist_pl.runs.words import PRESETS, key_of, split
from mnist_pl.storage import as_typed, as_word, printable, quoted, read_value, remove_parts, write

if TYPE_CHECKING:
    from lightning import Trainer

    from mnist_pl.models import DigitClassifier, Ensemble

log = logging.getLogger(__name__)

LASTING = re.compile(r"\$\{(?!(hydra|label):)[\w.]+:")  # `${oc.env:LR}`, `${now:...}`: may be another value tomorrow
FALSE = ("false", "no", "off", "0")


def expand_resume(arguments: list[str], conf: Path) -> list[str]:
    """A command line's arguments, in which `resume=RUN` stands for the settings that the run was composed with.

    The other arguments come on top; flags come first. Ends the program where there is nothing left to do. `conf` is the
    folder of train.yaml and the groups. Raises ValueError where there is no such run, or other settings are asked for
    of a sweep.
    """
    flags, words = split(arguments)
    more = [word for word in words if key_of(word) != "resume"]
    typed = [word.partition("=")[2] for word in words if key_of(word) == "resume"]
    runs = [text if (read := read_value(text)) is None else str(read) for text in typed]
    if not runs or runs[-1] == "null":
        return [*flags, *words]  # which argparse wants apart
    if not runs[-1]:
        raise ValueError("resume= is empty; name a run folder, or say resume=last for the newest")
    folder = newest_run() if runs[-1] == "last" else as_typed(runs[-1])
    if folder.suffix == ".ckpt":
        folder = folder.parent.parent
    if plan.is_sweep(folder):
        return _expand_sweep(folder, flags, more)
    if {"-m", "--multirun"} & set(flags):
        raise ValueError(f"resume={runs[-1]}: continues one run; leave out -m")
    config, overrides = (folder / ".hydra" / f"{name}.yaml" for name in ("config", "overrides"))
    if not overrides.is_file() or not overrides.stat().st_size:
        raise ValueError(
            f"resume={runs[-1]}: {overrides} tells how a run was started, and is "
            f"{'empty' if overrides.is_file() else 'not there'}; name a run folder, or say resume=last for the newest"
        )
    if (folder / "summary.json").exists() and not more and not flags:
        print(f"{folder} is finished; to train it further, add for instance trainer.max_epochs=10")
        sys.exit()
    composed = config.read_text(encoding="utf-8") if config.is_file() else ""
    if not composed or "mnist_pl.checkpoint." in composed:  # by version 0.1, which had other callbacks
        earlier = [str(word) for word in OmegaConf.load(overrides)]
        for word in earlier:
            if "_target_" in word and word not in more:
                raise ValueError(f"resume={runs[-1]}: it was started with {word}; if you know that, say it again")
        more = list({key_of(word): word for word in [*earlier, *more]}.values())
    else:
        _store(OmegaConf.create(composed), folder, conf, [key_of(word) for word in more if "=" in word])
        more = [re.sub(r"^\+(?!\+)", "++", word) for word in more]  # it may have been added before
        flags = [flag for flag in flags if not flag.startswith(("--config-name", "-cn"))] + [f"--config-name={RESUMED}"]
        more.append(f"resume={quoted(folder.absolute())}")  # for the further processes of DDP
    if any(key_of(word) == "fit" and word.partition("=")[2].lower() in FALSE for word in more):
        return [*flags, *more, f"ckpt_path={quoted(folder)}"]  # in a folder of its own: the run's record stays as it is
    places = [str(read_value(word.partition("=")[2])) for word in more if key_of(word) == "hydra.run.dir"]
    if any(as_typed(place).absolute() != folder.absolute() for place in places):
        raise ValueError(
            f"hydra.run.dir={places[-1]}: resume= continues a run in its own folder; to continue in another, say "
            f"{as_word('ckpt_path', folder)}"
        )
    checkpoint = existing_checkpoint(folder)
    if checkpoint is not None:  # else it was killed before its first checkpoint, and starts again
        more.append(f"ckpt_path={quoted(checkpoint)}")
    return [*flags, *more, f"hydra.run.dir={quoted(folder)}", plan.CONTINUES]


def _expand_sweep(folder: Path, flags: list[str], more: list[str]) -> list[str]:
    """The command that the sweep was started with, in the same folder."""
    sweep, name = plan.read(folder), as_word("resume", folder)
    for word in more:
        if word not in sweep.words and not word.startswith(("hydra.", "hydra/")) and "_target_" not in word:
            raise ValueError(f"{name}: is a sweep, whose settings stay what they were; leave out {word}")
    given = [key_of(word) for word in (*more, *flags)]
    if unsaid := [word for word in sweep.to_be_said if key_of(word) not in given]:
        raise ValueError(
            f"{name}: was started with {unsaid[0]}, which may call a stranger's code; if you know it, say it again: "
            f"{plan.again(folder)}"
        )
    if sweep.config_name != "train" and not any(flag.startswith("--config-name") for flag in flags):
        flags = [*flags, f"--config-name={sweep.config_name}"]
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    words = list({key_of(word): word for word in [*sweep.words, *more]}.values())
    return [*flags, "--multirun", *words, f"hydra.sweep.dir={quoted(folder)}", plan.CONTINUES]


def result(folder: str) -> dict[str, Any] | None:
    """The summary of a run that is finished."""
    path = Path(folder, "summary.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def as_composed(cfg: DictConfig, folder: str) -> DictConfig:
    """The settings that a run in `folder` was composed with, and its checkpoint; `cfg`, where there was none yet."""
    config = Path(folder, ".hydra", "config.yaml")
    if config.is_file() and config.stat().st_size:
        with open_dict(cfg):
            for key, value in OmegaConf.load(config).items():
                cfg[key] = value
    checkpoint = existing_checkpoint(Path(folder))
    if checkpoint is not None:
        cfg.ckpt_path = str(checkpoint)
    return cfg


def _store(settings: Any, folder: Path, conf: Path, keys: list[str]) -> None:
    """Makes `settings` a primary configuration; a group among `keys` is composed anew."""
    groups = [path.name for path in conf.iterdir() if path.is_dir() and path.name in keys]
    for group in groups:
        if group in PRESETS:
            raise ValueError(
                f"{group}: sets what resume= takes from the run; override single settings, or start a new run from "
                f"its weights with {as_word('ckpt_path', folder)}"
            )
        del settings[group]
    known = settings.keys() <= Train.__dataclass_fields__.keys()
    defaults = ["train_schema"] * known + ["_self_", *({group: None} for group in groups)]
    program: Any = OmegaConf.load(conf / "train.yaml")
    ours = {"defaults": [*defaults, {"override hydra/job_logging": "default"}], "hydra": program["hydra"]}
    ConfigStore.instance().store(RESUMED, {**settings, **ours})


def find_ensemble(cfg: DictConfig) -> "Ensemble | None":
    """What `ckpt_path` names, where that is several networks, or a file that joins some; `cfg` then tells of it.

    Raises ValueError where there is none, or it is to be trained further.
    """
    from mnist_pl.models import Ensemble
    from mnist_pl.models.classifier import class_path
    from mnist_pl.reading.checkpoint import class_name, load, own_class, read, trained_on

    if cfg.ckpt_path is None:
        return None
    paths = find_all(cfg.ckpt_path, *(NEWEST if cfg.fit else ("best.ckpt",)))
    if len(paths) > 1 or not isinstance(cfg.ckpt_path, str):  # one name stays as it was typed
        cfg.ckpt_path = [str(path) for path in paths] if len(paths) > 1 else str(paths[0])
    if len(paths) == 1 and class_name(read(paths[0])) != Ensemble.__name__:
        return None
    if cfg.fit:
        raise ValueError(
            f"ckpt_path={printable(cfg.ckpt_path)}: is an ensemble, whose members are trained one by one; continue "
            "one of them, or say fit=false to only test it"
        )
    model, checkpoint = load(paths, own_class(cfg.model._target_))
    assert isinstance(model, Ensemble)
    cfg.model = {"_target_": class_path(Ensemble), **model.hparams}
    if trained_on(checkpoint).get("val_size") != cfg.data.get("val_size"):
        log.info("without validation: its images are not those that all members held out")
        cfg.trainer.limit_val_batches = 0
    return model


def find_start(
    model: "DigitClassifier", trainer: "Trainer", fit: bool, ckpt_path: str | ListConfig | None
) -> Path | None:
    """The checkpoint to resume from, or to test; None where there are several, which `model` has already.

    Raises ValueError where there is none, it does not fit, or another run would be written over.
    """
    from mnist_pl.reading.checkpoint import check_continues, check_fits

    folder = Path(trainer.default_root_dir)
    start = find(ckpt_path, *(NEWEST if fit else ("best.ckpt",))) if isinstance(ckpt_path, str) else None
    existing = existing_checkpoint(folder)
    if existing is not None and (start is None or not fit or not existing.samefile(start)):
        raise ValueError(
            f"hydra.run.dir={folder}: holds an existing run; choose another folder, or resume it with "
            f"{as_word('resume', folder)}"
        )
    if start is None:
        if not fit and ckpt_path is None:
            raise ValueError("fit=false only tests, and needs ckpt_path: a checkpoint or a run folder")
        return None
    trained = check_fits(start, model)
    if fit:
        check_continues(start, trained, model)
        untested = existing is not None and not (folder / "summary.json").exists()  # killed after its last epoch
        done = {"epochs": trained.get("epochs", trained.get("epoch", 0)), "steps": trained["global_step"]}
        for what, count in done.items():
            most = getattr(trainer, f"max_{what}")
            if most is not None and 0 <= most <= count and not untested:
                raise ValueError(
                    f"ckpt_path={ckpt_path}: has trained {count} {what} and trainer.max_{what} is {most}; raise it to "
                    "train further, or say fit=false to only test"
                )
    return start


def changes(cfg: DictConfig) -> list[str]:
    """What the settings of a run that is resumed are now, where they are not what they were."""
    if cfg.resume is None:
        return []
    before = _leaves(OmegaConf.to_container(OmegaConf.load(Path(cfg.resume, ".hydra", "config.yaml"))))
    now = _leaves(_last(OmegaConf.to_container(cfg), OmegaConf.to_container(cfg, resolve=True)))
    before.setdefault("threads", now["threads"])  # which earlier versions did not keep
    names = [name for name in {**before, **now} if name not in ("resume", "ckpt_path", "fit")]
    return [
        f"{name} {before.get(name, 'unset')} -> {now.get(name, 'unset')}"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    dot = name and name + "."
    return {path: leaf for key in value for path, leaf in _leaves(value[key], f"{dot}{key}").items()}


def remember(cfg: DictConfig) -> None:
    """Writes .hydra into the run's folder; Hydra itself would do so before a command is checked."""
    folder = Path(HydraConfig.get().runtime.output_dir, ".hydra")
    for parts in (folder.parent, folder):
        remove_parts(parts)
    settings = _last(OmegaConf.to_container(cfg), OmegaConf.to_container(cfg, resolve=True))
    files: dict[str, Any] = {"config.yaml": {**settings, "resume": None}, "overrides.yaml": said(cfg.resume)[1]}
    if not (folder / "hydra.yaml").exists():
        files["hydra.yaml"] = {"hydra": HydraConfig.get()}
    for name, content in files.items():
        write(folder / name, OmegaConf.to_yaml(OmegaConf.create(content)).encode())


def _last(raw: Any, resolved: Any) -> Any:
    """Settings as they were written, except for values from the environment or of this moment."""
    if isinstance(raw, dict) and isinstance(resolved, dict):
        return {key: _last(raw[key], resolved[key]) for key in raw}
    if isinstance(raw, list) and isinstance(resolved, list):
        return [_last(*pair) for pair in zip(raw, resolved, strict=True)]
    return resolved if isinstance(raw, str) and LASTING.search(raw) else raw


def fit(trainer: "Trainer", model: "DigitClassifier", data: Any, start: Path | None, step: int) -> None:
    """`trainer.fit`, from the checkpoint `start` of `step`, if any. Raises ValueError where that is broken."""
    from mnist_pl.engine.checkpoints import Best

    if start is not None:
        if existing_checkpoint(Path(trainer.default_root_dir)) is not None:
            trainer.num_sanity_val_steps = 0  # its score is in this folder's record already
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Best):
                callback.continued = start
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
    except Exception as error:  # whatever a broken checkpoint leads to
        if start is None or trainer.global_step not in (0, step):
            raise
        raise ValueError(f"ckpt_path={start}: cannot be continued ({type(error).__name__}: {error})") from error
