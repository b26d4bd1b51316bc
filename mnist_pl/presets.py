"""`python -m mnist_pl.presets`: what accuracy each preset gives at what cost, as a table and as a picture.

With runs or folders of runs named, of these; else of all presets, as measured for the project.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from mnist_pl.runs import front
from mnist_pl.runs.errors import one_line_errors, set_up_process, suggest

TIMED = 3  # epochs of the yardstick, of which the median counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mnist_pl.presets", description=__doc__)
    parser.add_argument("folders", nargs="*", help="runs, or folders of runs, as outputs or multirun/presets")
    parser.add_argument("--output", type=Path, default=Path("front.png"), help="the picture (default: front.png)")
    parser.add_argument("--keep", action="store_true", help="have these runs be what ships for their presets")
    arguments, unknown = parser.parse_known_intermixed_args()
    if unknown:
        known = ("--output", "--keep", "--help")
        raise ValueError(f"{unknown[0]}: there is no such option; {suggest(unknown[0], known)}")
    if arguments.output.suffix != ".png":
        raise ValueError(f"--output {arguments.output}: must be the name of a PNG file, as front.png")
    if arguments.keep and not arguments.folders:
        raise ValueError("--keep: name the runs, or folders of runs, that are to be kept")
    runs = front.scored([Path(folder) for folder in arguments.folders])
    if arguments.keep:
        keep(runs)
    shipped = arguments.keep or not arguments.folders
    found = front.presets(front.kept(), front.names()) if shipped else front.presets(runs)
    print("\n".join(front.table(found)))
    drawn = front.draw(found, arguments.output)
    print(f"\nwrote {arguments.output}" if drawn else "\nno picture: no training is behind any figure")


def keep(runs: list[front.Run]) -> None:
    """Counts their cost in minutes, of an epoch of the yardstick that is timed here and now."""
    from mnist_pl.benchmark import Bench, own_process, processor

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))

        def minute(threads: int) -> float:
            with own_process(bench.folder, front.YARDSTICK, False, threads) as epoch:
                return front.MINUTE * statistics.median([epoch() for _ in range(1 + TIMED)][1:])

        front.keep(runs, minute, processor())


if __name__ == "__main__":
    set_up_process()
    with one_line_errors():
        main()
