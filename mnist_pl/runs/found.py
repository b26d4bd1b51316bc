"""What a study has found: a ranked table, pictures, and the best trial as a preset."""

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna import Study, create_study, create_trial
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

from mnist_pl.figures import plots, results
from mnist_pl.runs.folders import LABELLED
from mnist_pl.runs.search import SCORE, as_a_run, interrupted
from mnist_pl.runs.space import words_of
from mnist_pl.storage import csv_text, in_shell, markdown, one_line, short_path, write

SHOWN = 10  # trials in the terminal; the files have all
ENOUGH = 8  # trials, to say what matters; below, it would be chance alone
PRESET = Path("experiment", "found.yaml")  # so that --config-dir=STUDY finds it
OF_A_RUN = (*LABELLED, "seed")  # what a preset sets; not what watches and records a run


def score(trial: FrozenTrial) -> float | None:
    """The best validation accuracy, of a trial that was given up too."""
    if trial.value is not None and trial.state.name == "COMPLETE":
        return trial.value
    return max(trial.intermediate_values.values(), default=None)


def state(trial: FrozenTrial, retries: dict[int, int]) -> str:
    if trial.number in retries:
        return f"interrupted, again as {retries[trial.number]}"
    if trial.state.name == "PRUNED":
        return f"given up after {len(trial.intermediate_values)}"
    words = {"COMPLETE": "finished", "RUNNING": "running", "WAITING": "waiting"}
    return words.get(trial.state.name) or f"failed: {one_line(trial.user_attrs.get('error', 'without a score'))}"


def seconds(trial: FrozenTrial) -> float | None:
    return None if trial.duration is None else trial.duration.total_seconds()


def in_words(trial: FrozenTrial) -> str:
    """What it tried, for people: not all digits."""
    return " ".join(f"{name}={_short(value, exact=False)}" for name, value in trial.params.items())


def ranked(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Finished ones first, by their scores; then those given up, by theirs; then the rest."""
    order = {"COMPLETE": 0, "PRUNED": 1}
    return sorted(trials, key=lambda one: (order.get(one.state.name, 2), -(score(one) or 0), one.number))


def best(trials: list[FrozenTrial]) -> FrozenTrial | None:
    return next((one for one in ranked(trials) if one.state.name == "COMPLETE"), None)


def rows(trials: list[FrozenTrial], exact: bool) -> list[list[str]]:
    """A heading, and a row a trial; `exact` with all digits, for a program to read."""
    names = list(dict.fromkeys(name for one in trials for name in one.params))
    retries = interrupted(trials)
    table = [["trial", SCORE if exact else f"{SCORE} %", "seconds", "state", *names]]
    for one in ranked(trials):
        accuracy, took = score(one), seconds(one)
        figures = [accuracy, took] if exact else [accuracy and f"{accuracy:.2%}"[:-1], took and f"{took:.1f}"]
        said = [_short(one.params[name], exact) if name in one.params else None for name in names]
        cells = [one.number, *figures, state(one, retries), *said]
        table.append([("" if exact else "–") if cell is None else str(cell) for cell in cells])
    return table


def _short(value: Any, exact: bool) -> str:
    return f"{value:.3g}" if isinstance(value, float) and not exact else str(value)


def report(study: Study, words: list[str], folder: Path, command: str) -> str:
    """Writes trials.csv, results.md, the pictures and the preset into `folder`; returns what to print of them.

    `words` are the command line's, and `command` is one that continues the study.
    """
    trials = study.get_trials(deepcopy=False)
    if not trials:
        return f"\nno trial yet; begin with {command}"
    write(folder / "trials.csv", csv_text(rows(trials, exact=True)).encode())
    table = markdown(rows(trials, exact=False))
    files = ["results.md", "trials.csv"]
    winner, end = best(trials), dict[str, str]()
    lines = [f"{len(trials)} trials of {short_path(folder)}, ranked by their best {SCORE}:", "", *table]
    if winner is not None:
        with as_a_run(words, words_of(winner.params), folder) as cfg:
            write(folder / PRESET, preset(cfg, about(study, winner, command)).encode())
        curve = [(one.number, score(one), one.state.name) for one in trials]
        plots.save(results.history(curve, short_path(folder)), folder / "history.png")
        files += ["history.png"]
        if shares := importances(trials):
            picture = results.importances(shares, f"{short_path(folder)}, {len(trials)} trials")
            plots.save(picture, folder / "importance.png")
            files += ["importance.png"]
        said = " ".join(words_of(winner.params))
        lines += ["", f"best: trial {winner.number}, {winner.value:.2%}, {said}"]
        end["best"] = f"{winner.value:.2%} {SCORE}, trial {winner.number}: of one seed, and chosen by that very score"
        end["run it"] = f"python train.py {in_shell(f'--config-dir={short_path(folder)}')} experiment={PRESET.stem}"
    write(folder / "results.md", ("\n".join(lines) + "\n").encode())
    more = f"\n({len(trials) - SHOWN} more are in results.md)" if len(trials) > SHOWN else ""
    end |= {"all in": f"{short_path(folder)}: {', '.join(files)}", "further": command}
    return "\n".join(["", *table[: SHOWN + 2]]) + f"{more}\n\n" + "\n".join(f"{k:10}{v}" for k, v in end.items())


def importances(trials: list[FrozenTrial]) -> dict[str, float]:
    """Each setting's share in how trials differ after their first validation (fANOVA, a forest of seed 0).

    After the last one, it would be asked of those alone that were not given up, which are all good: of 25 trials, what
    comes out then is chance. Of the settings that all trials have; none, where there are too few trials to tell.
    """
    early = create_study(direction="maximize")
    for one in trials:
        if one.intermediate_values:
            value = one.intermediate_values[min(one.intermediate_values)]
            early.add_trial(create_trial(params=one.params, distributions=one.distributions, value=value))
    if len(early.trials) < ENOUGH or len({one.value for one in early.trials}) < 2:
        return {}
    return get_param_importances(early, evaluator=FanovaImportanceEvaluator(seed=0))


def about(study: Study, winner: FrozenTrial, command: str) -> str:
    trials = len(study.get_trials(deepcopy=False))
    return (
        f"# {winner.value:.2%} validation accuracy: trial {winner.number}, the best of {trials} of a search.\n"
        "# Of one seed, and chosen by that very score, which flatters it: measure it again with other seeds.\n"
        f"# {command}\n"
    )


def preset(cfg: DictConfig, header: str) -> str:
    """`cfg` as a file for conf/experiment: what differs from train.yaml, of what a run's result depends on."""
    choices = HydraConfig.get().runtime.choices
    usual = compose("train", return_hydra_config=True).hydra.runtime.choices
    chosen = {group: choices[group] for group in LABELLED if choices[group] != usual[group]}
    base = compose("train", [f"{group}={option}" for group, option in chosen.items()])
    said, known = (OmegaConf.to_container(OmegaConf.masked_copy(one, list(OF_A_RUN))) for one in (cfg, base))
    defaults = [{f"override /{group}": option} for group, option in chosen.items()]
    content = {**({"defaults": defaults} if defaults else {}), **_differing(said, known)}
    return f"# @package _global_\n{header}{OmegaConf.to_yaml(OmegaConf.create(content))}"


def _differing(value: Any, other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, part in value.items():
        if isinstance(part, dict) and isinstance(other.get(key), dict):
            inner = _differing(part, other[key])
            found |= {key: inner} if inner else {}
        elif key not in other or part != other[key]:
            found[key] = part
    return found
