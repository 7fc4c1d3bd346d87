"""How safely the contract tests can say that a method has learnt: margins by seed and processor.

Each method is trained with its ``tiny`` preset on the toy cohort of the tests, with three seeds and
under settings that make the same sums in another order (instruction sets of PyTorch and oneDNN, one
or two threads). Settings that this processor lacks are left out.

    python benchmarks/toy_margins.py [METHOD ...]    # no names: every trained method

It rewrites the methods' rows in tests/contract/margins.csv and the table
benchmarks/results/toy_margins.md; run it at the root of a checkout.
"""

from __future__ import annotations

import csv
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
STORED = ROOT / "tests" / "contract" / "margins.csv"
TABLE = ROOT / "benchmarks" / "results" / "toy_margins.md"
FIELDS = ("method", "setting", "threads", "seed", "trained", "untrained", "mean_image", "margin")

# name: variables, what the processor must have for it to differ from the plain setting, which is run
# with every seed.
PLAIN = "as it is"
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    PLAIN: ({}, ""),
    "ATen default": ({"ATEN_CPU_CAPABILITY": "default"}, ""),
    "ATen AVX2": ({"ATEN_CPU_CAPABILITY": "avx2"}, "avx512f"),
    "ATen AVX-512": ({"ATEN_CPU_CAPABILITY": "avx512"}, "avx512f"),
    "oneDNN SSE4.1": ({"ONEDNN_MAX_CPU_ISA": "SSE41"}, "sse4_1"),
    "oneDNN AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "avx512f"),
    "oneDNN AVX-512": ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "avx512f"),
}
SEEDS = (0, 1, 2)


def runs() -> list[tuple[str, int, int]]:
    """Setting, threads and seed of each run: all seeds in the plain one, the first in the others."""
    try:
        has = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        has = set()
    other = [name for name, (_, needs) in SETTINGS.items() if not needs or needs in has]
    return [
        *((PLAIN, 1, seed) for seed in SEEDS),
        *((name, 1, 0) for name in other if name != PLAIN),
        (PLAIN, 2, 0),
    ]


def work(threads: int, seed: int, methods: list[str]) -> None:
    """In a process of its own: judge methods and print a line of JSON for each."""
    import torch
    from tests.contract.judging import axes, judge
    from tests.support.needs import Toys
    from tests.toy import write_toy_cohort

    from normscan.registry import card

    def made(name: str) -> Path:
        path = Path(folder) / name
        path.mkdir()
        return path

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        cohorts = Toys(
            made, functools.cache(lambda d, c: write_toy_cohort(made(f"plain{d}d{c}c"), d, c))
        )
        for method in methods:
            verdict = judge(method, cohorts(card(method), axes(method)), seed)
            values = {**vars(verdict), "margin": verdict.margin}
            rounded = {name: round(value, 4) for name, value in values.items()}
            print(json.dumps({"method": method, **rounded}), flush=True)


def measured(methods: list[str]) -> list[dict[str, str]]:
    """Run every setting and return the rows."""
    rows = []
    for setting, threads, seed in runs():
        command = [sys.executable, __file__, "--work", str(threads), str(seed), *methods]
        environment = {
            **os.environ,
            **SETTINGS[setting][0],
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",  # two threads that spin on busy cores take ten times longer
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as run:
            assert run.stdout is not None
            for line in run.stdout:
                values = json.loads(line)
                row = {**values, "setting": setting, "threads": threads, "seed": seed}
                rows.append({name: str(row[name]) for name in FIELDS})
                print(*rows[-1].values(), sep=", ", flush=True)
        if run.returncode:
            raise SystemExit(f"{setting}, {threads} threads, seed {seed}: ended with an error")
    return rows


def write(rows: list[dict[str, str]]) -> None:
    """Write the rows and the table of smallest, median and deviation by method."""
    with STORED.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    by_method = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    lines = [
        "# Margins of the contract tests",
        "",
        "By `python benchmarks/toy_margins.py`: AUROC of pixels on the toy's lesions (mean of "
        "bright, dark and iso-intense ones, or of those that the map shows by its definition), "
        "trained minus the better of untrained and mean image; over seeds, instruction sets and "
        "threads as in `tests/contract/margins.csv`.",
        "",
        "| method | runs | trained | untrained | mean image | smallest margin | median | deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, found in sorted(by_method.items()):
        margins = [float(row["margin"]) for row in found]
        middle = [
            statistics.median(float(row[name]) for row in found)
            for name in ("trained", "untrained", "mean_image")
        ]
        figures = [*middle, min(margins), statistics.median(margins), statistics.stdev(margins)]
        cells = " | ".join(f"{value:.3f}" for value in figures)
        lines.append(f"| {method} | {len(found)} | {cells} |")
    TABLE.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Run the command line."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(__doc__)
        return
    if sys.argv[1:2] == ["--work"]:
        work(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
        return
    from normscan.registry import load_all

    trained = [
        id for id, card in load_all().items()
        if card.regime != "zero-shot" and card.family != "baselines"
    ]  # fmt: skip
    methods = sys.argv[1:] or trained
    found, kept = measured(methods), []
    if STORED.exists():
        with STORED.open(newline="") as file:
            kept = [r for r in csv.DictReader(file) if r["method"] in trained]
    kept = [row for row in kept if row["method"] not in methods]
    write(sorted(kept + found, key=lambda row: row["method"]))


if __name__ == "__main__":
    main()
