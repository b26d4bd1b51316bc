"""The benchmark measures, and says what it measured. No speed is asserted here."""

import json

from conftest import Run

from mnist_pl import benchmark


def test_a_row_is_measured_on_random_images_where_there_is_no_mnist(run: Run) -> None:
    ended = run("mnist_pl/benchmark.py", "--only", "reading", "--json")
    assert ended.code == 0, ended.err
    facts = json.loads(ended.out)
    assert facts["images"] == "random" and facts["threads"] > 0 and facts["torch"]
    (row,) = facts["rows"]
    assert row["what"] == "reading the four files" and 0 < row["low"] <= row["result"] <= row["high"]


def test_pairs_are_compared_one_by_one() -> None:
    compared = benchmark.compare([1.0, 4.0, 2.0], [2.0, 4.0, 8.0], "x")
    assert (compared["result"], compared["low"], compared["high"]) == (0.5, 0.25, 1.0)
    assert benchmark.compare([9.0, 7.0], [4.0, 4.0], "+s")["result"] == 4.0
    row = benchmark.table([{"what": "a", "yardstick": "b", "target": "c", **compared}])[-1]
    assert row == "| a | 2.00 s | b | 4.00 s | 0.50 × | 0.25 × to 1.00 × | c |"
