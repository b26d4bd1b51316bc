"""`python -m mnist_pl.sweep FOLDER`: the results of a sweep again, also while it runs; or a table of any runs."""

import argparse
import sys
from pathlib import Path

from mnist_pl.runs.errors import set_up_streams
from mnist_pl.runs.sweep import Report, jobs, report

__all__ = ["Report"]  # the name that conf/train.yaml knows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="a sweep, or a folder of runs, as multirun/presets")
    folder = parser.parse_args().folder
    found = jobs(folder)
    if not found:
        sys.exit(f"error: no run below {folder} has a summary.json")
    print("\n".join(report(folder, found)))


if __name__ == "__main__":
    set_up_streams()
    main()
