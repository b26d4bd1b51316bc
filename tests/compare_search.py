"""TPE against random search, on MNIST: do both find better settings for the MLP than its published recipe has?

    python tests/compare_search.py FOLDER --studies 5 --trials 25 --side-by-side 2

Each study is `python -m mnist_pl.tune tune=mlp model.hidden=[50]`: the network of `seed_mlp`, 784-50-10, for its three
epochs. The recipe is trained on the same 55,000 images, with the random seeds 1, 2, ... The best of many trials is too
good by the luck of its seed; so the best settings of each study are trained again, with three seeds of their own. What
is in FOLDER already is not done again.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HONEST = ["data.validate_on_test=false", "data.val_size=5000"]  # the recipe's author chose by the test images
QUIET = ["callbacks=minimal", "logger=csv"]
FRESH = (101, 102, 103)


def program(*words: str) -> None:
    environment = {"PYTHONPATH": str(ROOT), **os.environ}
    subprocess.run([sys.executable, *words], check=True, env=environment, stdout=subprocess.DEVNULL)


def train(folder: Path, *words: str) -> dict[str, Any]:
    summary = folder / "summary.json"
    if not summary.exists():
        program(str(ROOT / "train.py"), *words, *QUIET, f"hydra.run.dir={folder}")
    return json.loads(summary.read_text())


def study(folder: Path, sampler: str, seed: int, trials: int) -> dict[str, Any]:
    words = ["tune=mlp", "model.hidden=[50]", f"sampler={sampler}", f"seed={seed}", f"trials={trials}"]
    program("-m", "mnist_pl.tune", *words, f"study={folder}")
    with open(folder / "trials.csv", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))
    again = [
        train(folder / f"again-{fresh}", f"--config-dir={folder}", "experiment=found", f"seed={fresh}")
        for fresh in FRESH
    ]
    return {"rows": rows, "again": again}


def until(rows: list[dict[str, str]], goal: float) -> tuple[int, float] | None:
    """Trials and seconds until a finished one is as good."""
    spent = 0.0
    for number, row in enumerate(rows, 1):
        spent += float(row["seconds"] or 0)
        if row["state"] == "finished" and float(row["val/acc"]) >= goal:
            return number, spent
    return None


def spread(values: list[float], digits: int = 2) -> str:
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", type=int, default=5)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--side-by-side", type=int, default=1)
    parser.add_argument("--better", type=float, default=2, help="points above the recipe's val acc to reach")
    asked = parser.parse_args()
    seeds = range(1, asked.studies + 1)
    with ThreadPoolExecutor(asked.side_by_side) as pool:
        recipe = [
            pool.submit(
                train, asked.folder / f"seed_mlp-{seed}", "experiment=seed_mlp", "claim=null", *HONEST, f"seed={seed}"
            )
            for seed in seeds
        ]
        studies = {
            (sampler, seed): pool.submit(study, asked.folder / f"{sampler}-{seed}", sampler, seed, asked.trials)
            for seed in seeds
            for sampler in ("tpe", "random")
        }
        baseline = [run.result() for run in recipe]
        results = {key: future.result() for key, future in studies.items()}
    usual = statistics.fmean(run["val/acc"] for run in baseline)
    heading = ["", f"best of {asked.trials}, val acc %", "its settings again, val acc %", "test acc %"]
    heading += [f"trials until +{asked.better:g} points", "seconds until then", "seconds in all", "given up"]
    vals, tests = ([run[name] * 100 for run in baseline] for name in ("val/acc", "test/acc"))
    lines = [heading, ["-"] * len(heading), ["`seed_mlp`", "", spread(vals), spread(tests), "", "", "", ""]]
    for sampler in ("tpe", "random"):
        mine = [results[sampler, seed] for seed in seeds]
        best = [max(float(row["val/acc"]) for row in one["rows"] if row["state"] == "finished") for one in mine]
        again = {
            name: [statistics.fmean(run[name] for run in one["again"]) for one in mine]
            for name in ("val/acc", "test/acc")
        }
        reached = [until(one["rows"], usual + asked.better / 100) for one in mine]
        spent = [sum(float(row["seconds"] or 0) for row in one["rows"]) for one in mine]
        lost = [sum(row["state"].startswith("given up") for row in one["rows"]) for one in mine]
        cells = [sampler, spread([100 * value for value in best])]
        cells += [spread([100 * value for value in values]) for values in again.values()]
        cells += [", ".join("never" if one is None else str(one[0]) for one in reached)]
        cells += [", ".join("never" if one is None else f"{one[1]:.0f}" for one in reached)]
        lines += [[*cells, spread(spent, 0), spread(list(map(float, lost)), 1)]]
    print("\n".join("| " + " | ".join(line) + " |" for line in lines))


if __name__ == "__main__":
    main()
