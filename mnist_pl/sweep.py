"""`python -m mnist_pl.sweep FOLDER`: the table of the runs below it, as Markdown."""

import argparse
import sys
from pathlib import Path

from mnist_pl.runs.errors import set_up_streams
from mnist_pl.runs.sweep import Report, read, table

__all__ = ["Report"]  # the name that conf/train.yaml knows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder of runs, as multirun/presets")
    folder = parser.parse_args().folder
    runs = read(folder)
    if not runs:
        sys.exit(f"error: no run below {folder} has a summary.json")
    print("\n".join(table(runs)))


if __name__ == "__main__":
    set_up_streams()
    main()
