"""Move a share of a cohort's test scans to ``extra``, for methods that learn from unlabelled ones.

    python benchmarks/with_extra.py TABLE OUT --fraction 0.5 --seed 0

The published splits of most sets have no ``extra``. Whole subjects move, and subjects that share
an exact copy of a file move together; healthy ones and those with an anomalous scan are drawn
separately, so that test keeps its mixture. What is left in test serves every method alike. OUT is
a new table (.csv, .tsv, .parquet) whose paths are relative to its own folder. The same seed moves
the same subjects on every machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from normscan.cohort import Cohort
from normscan.cohort.splits import groups


def with_extra(cohort: Cohort, fraction: float = 0.5, seed: int = 0) -> Cohort:
    """Return the cohort with a share of the test subjects in ``extra``.

    Args:
        cohort: with scans in test.
        fraction: of the test subjects, 0 to 1; rounded for healthy and anomalous ones each.
        seed: of the draw.
    """
    table = cohort.table.copy()
    test = table["split"] == "test"
    table["group"] = groups(table, cohort.root)
    anomalous = set(table.loc[test & (table["label"] == 1).fillna(False), "group"])
    names = sorted(set(table.loc[test, "group"]))
    generator = np.random.default_rng(seed)
    moved: list[str] = []
    for stratum in (
        [g for g in names if g not in anomalous], [g for g in names if g in anomalous]
    ):  # fmt: skip
        moved += list(generator.permutation(stratum)[: round(fraction * len(stratum))])
    table.loc[test & table["group"].isin(moved), "split"] = "extra"
    return Cohort(table.drop(columns="group"), cohort.root, cohort.notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    result = with_extra(Cohort.read(args.table), args.fraction, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    print(result.write(args.out), result)


if __name__ == "__main__":
    main()
