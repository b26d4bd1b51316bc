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
    for path in sorted(folder.glob("**/summary.json"), key=lambda path: path.stat().st_mtime):
        overrides = path.parent / ".hydra" / "overrides.yaml"
        said = [str(word) for word in OmegaConf.load(overrides)] if overrides.exists() else []
        choice = " ".join(word for word in said if not word.startswith(("seed=", "sweep=")))
        runs.append({**json.loads(path.read_text()), "choice": choice or "default"})
    return runs


def table(runs: list[dict[str, Any]]) -> list[str]:
    """Rows of Markdown: mean ± standard deviation over the seeds of each choice."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["choice"]].append(run)
    columns = {
        "choice": lambda group: group[0]["choice"],
        "seeds": lambda group: str(len(group)),
        "epochs": lambda group: str(group[0]["epochs"]),
        "val acc %": lambda group: _spread(group, "val/acc", 100, 2),
        "claimed %": lambda group: "–" if group[0].get("claim") is None else f"{group[0]['claim']:g}",
        "test acc %": lambda group: _spread(group, "test/acc", 100, 2),
        "test loss": lambda group: _spread(group, "test/loss", 1, 4),
        "seconds in fit": lambda group: _spread(group, "train_seconds", 1, 1),
    }
    if all(run.get("claim") is None for run in runs):
        del columns["claimed %"]
    if all(run["val/acc"] == run["test/acc"] for run in runs):  # presets that validate on the test images
        del columns["val acc %"]
    rows = [list(columns), *([cell(group) for cell in columns.values()] for group in groups.values())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
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
