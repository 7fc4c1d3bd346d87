r"""What a second worker of Ray gains: python benchmarks/ray_speed.py, on a machine with two idle cores.

Forty made-up volumes are predicted by one worker and by two of one local cluster, in turns
(1, 2, 2, 1, ...), so that other work on the machine hits both. The start of the cluster and of its
workers stands apart: an untimed volume comes first in each turn. The load of the machine stands
beside every turn; a figure taken above a load of ``QUIET`` before the first turn says nothing of two
free cores, and the script says so. Writes ``benchmarks/results/ray_speed.md``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

import normscan as ns  # noqa: E402
from normscan.parallel import cores  # noqa: E402
from normscan.ray import cluster, over  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "ray_speed.md"
QUIET = 0.5  # load above which others share the cores
SHAPE = (48, 96, 96)


def scorer(run: str) -> Any:
    """Return what predicts the volume of a file and returns its score."""
    detector = ns.load(run, "cpu")
    return lambda path: float(detector.predict(path, details=False).score)


def made(folder: Path, count: int) -> tuple[str, list[str]]:
    """Fit a small detector to healthy volumes and write others to predict."""
    rng = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    inside = sum(a**2 for a in axes) < 0.8

    def volume(k: int) -> str:
        path = folder / f"{k}.npy"
        np.save(path, (inside * (0.6 + 0.1 * rng.random(SHAPE))).astype(np.float32))
        return str(path)

    healthy = [volume(k) for k in range(8)]
    detector = ns.Detector("dae", preset="laptop", steps=2, dims=2, calibration="split", gate=False)
    detector.fit(healthy, folder / "run", device="cpu")
    return str(folder / "run"), [volume(100 + k) for k in range(count)]


def timed(run: str, volumes: list[str], workers: int) -> tuple[float, list[float]]:
    """Return the seconds from the first result to the last, and the scores."""
    first = [volumes[0]] * workers  # each worker loads the detector for it
    found = over(partial(scorer, run), [*first, *volumes], workers)
    for _ in first:
        next(found)
    begun = time.perf_counter()
    scores = [float(score) for score in found]  # type: ignore[arg-type]
    return time.perf_counter() - begun, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--volumes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    before, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory(prefix="normscan-") as temporary, cluster(None, 2):
        run, volumes = made(Path(temporary), options.volumes)
        for turn in range(options.rounds):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                load = os.getloadavg()[0]
                seconds, scores = timed(run, volumes, workers)
                rows.append((workers, seconds, load, scores))
                print(f"{workers} workers: {seconds:.1f} s at a load of {load:.1f}", flush=True)
    same = all(scores == rows[0][3] for *_, scores in rows)
    middle = {w: statistics.median(s for n, s, *_ in rows if n == w) for w in (1, 2)}
    lines = [
        "# What a second worker of Ray gains",
        "",
        f"`python benchmarks/ray_speed.py --volumes {options.volumes} --rounds {options.rounds}`: "
        f"{options.volumes} volumes of {' x '.join(map(str, SHAPE))} voxels predicted with `dae` in its "
        f"laptop preset by workers of one thread. {platform.machine()}, {cores()} cores, load before "
        f"the first turn {before:.1f}.",
        "",
        "| workers | seconds | load at the start of the turn |",
        "|---|---|---|",
        *(f"| {n} | {s:.1f} | {load:.1f} |" for n, s, load, _ in rows),
        "",
        f"Two workers: {middle[1] / middle[2]:.2f} times as fast as one (medians). The scores are "
        f"{'the same bits' if same else 'NOT the same'} in all turns.",
    ]
    if before > QUIET:
        lines += [
            "",
            f"**Others shared the cores** (a load of {before:.1f} before the first turn): this says "
            "nothing of two free cores. On a machine that does nothing else, whose `uptime` shows a load "
            f"below {QUIET}, run the same command again.",
        ]
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
