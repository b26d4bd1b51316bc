"""What a sweep reports at its end. `python -m mnist_pl.sweep FOLDER` prints it again, as Markdown."""

import json
import logging
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

log = logging.getLogger(__name__)


class Report(Callback):
    """Logs one table when the last job of a sweep has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        lines = table(read(folder))
        print("\n" + "\n".join(lines) + f"\n\nThe runs are in {folder}")


def read(folder: Path) -> list[dict[str, Any]]:
    """The summaries below a folder, each with what was said on its command line under `choice` (the seed left out)."""
    runs = []
    for path in sorted(folder.glob("**/summary.json")):
        overrides = path.parent / ".hydra" / "overrides.yaml"
        said = [str(word) for word in OmegaConf.load(overrides)] if overrides.exists() else []
        choice = " ".join(word for word in said if not word.startswith(("seed=", "sweep=")))
        runs.append({**json.loads(path.read_text()), "choice": choice or "default"})
    return runs


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: mean and standard deviation over the seeds of each choice, best first in a sweep."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["choice"]].append(run)
    claimed = any(run.get("claim") is not None for run in runs)
    head = ["choice", "seeds", "epochs", "val acc %", "test acc %", "test loss", "seconds in fit"]
    rows = [head[:4] + ["claimed %"] * claimed + head[4:]]
    for choice, group in groups.items():
        claim = group[0].get("claim")
        rows.append(
            [choice, str(len(group)), str(group[0]["epochs"]), _spread(group, "val/acc", 100, 2)]
            + [("–" if claim is None else f"{claim:g}")] * claimed
            + [_spread(group, "test/acc", 100, 2), _spread(group, "test/loss", 1, 4)]
            + [_spread(group, "train_seconds", 1, 1)]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines


def _spread(group: list[dict[str, Any]], name: str, scale: float, digits: int) -> str:
    values = [run[name] * scale for run in group if run[name] is not None]
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("error: say which folder, for instance python -m mnist_pl.sweep multirun/presets")
    runs = read(Path(sys.argv[1]))
    if not runs:
        sys.exit(f"error: no run below {sys.argv[1]} has a summary.json")
    print("\n".join(table(runs)))


if __name__ == "__main__":
    main()
