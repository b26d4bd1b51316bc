"""`python -m mnist_pl.data`: downloads a data set, or verifies the files that are there."""

import argparse
import logging
import sys

from mnist_pl.data.files import SOURCES, default_folder, fetch, read
from mnist_pl.signals import end_on_signals


def main() -> None:
    end_on_signals()
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.data", description=__doc__)
    parser.add_argument("dataset", nargs="?", default="mnist", help=f"one of {', '.join(SOURCES)} (default: mnist)")
    dataset = parser.parse_args().dataset
    if dataset not in SOURCES:
        sys.exit(f"error: there is no data set {dataset!r} to download; there are {', '.join(SOURCES)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        folder = fetch(dataset, default_folder())
        train, test = read(dataset, folder)
    except OSError as error:
        sys.exit(f"error: {error}")
    print(f"{dataset}: {len(train[1]):,} training and {len(test[1]):,} test images, verified, in {folder}")


if __name__ == "__main__":
    main()
