"""The command ``normscan tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from normscan.errors import ArgumentError
from normscan.parallel import use_threads


def tune(
    method: str,
    cohort: str,
    out: str,
    space: list[str],
    root: str | None = None,
    preset: str = "laptop",
    trials: int = 20,
    minutes: float | None = None,
    seed: int = 0,
    planted: int = 120,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    arguments: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    calibration: Literal["auto", "split", "cross"] = "auto",
    device: str = "auto",
    threads: int | None = None,
    resume: bool = False,
    engine: Literal["local", "ray"] = "local",
    workers: int = 1,
    address: str | None = None,
) -> None:
    """Search the arguments of a method by anomalies that are planted into healthy scans.

    Training subjects that a trial doesn't train on judge it, as in `fit auto`. Neither the scans of
    val, which set the threshold, nor any label of test takes part in the choice.

    Args:
        method: id of a method that learns from healthy scans alone.
        cohort: table (CSV, TSV, Parquet) or folder.
        out: new folder; the table of trials goes there, and the fitted detector to run in it.
        space: arguments and what they may be, such as --space width=16,32 (choices) and
            --space lr=1e-4..1e-2 (a range; of whole numbers where both ends are).
        root: folder of the table's relative paths.
        preset: whose own arguments are the first trial and stay unless others are clearly better.
        trials: at most; where there are as few combinations of choices, each is tried once.
        minutes: of trials, after which no further one begins.
        seed: of everything random.
        planted: anomalies that judge, about.
        fractions: healthy subjects for train, val and test, where the cohort gives no split.
        arguments: of the method that all trials have, such as '{"steps": 200}'.
        preprocess: settings to change, as of fit.
        calibration: of the detector that is fitted in the end, as of fit.
        device: auto, cpu, cuda, ...
        threads: of the arithmetic; by default the cores that this process may use.
        resume: go on with the search in the folder.
        engine: local, or ray: so many trials at a time, which are never given up in the middle.
        workers: of the engine ray.
        address: of a running cluster of Ray, auto for this machine's; by default one is started here.
    """
    from normscan.cohort import Cohort
    from normscan.tune import Asked, Engine
    from normscan.tune import tune as search

    use_threads(threads)
    places = dict(_named(text) for text in space)
    options: dict[str, Any] = {**(arguments or {}), "calibration": calibration}
    if preprocess:
        options["preprocess"] = preprocess
    asked = Asked(
        method, preset, places, trials, minutes, seed, options, planted, device,
    )  # fmt: skip
    table = Cohort.read(cohort, root=root, seed=seed, fractions=fractions)
    found = search(asked, table, Path(out), resume, Engine(engine, workers, address), progress=True)
    shown = sorted((r for r in found.trials if r["auroc"] is not None), key=lambda r: -r["auroc"])
    for row in shown[:10]:
        values = "  ".join(f"{name}={row[name]}" for name in places)
        print(f"{row['trial']:>4}  AUROC {row['auroc']:.3f} +- {row['error']:.3f}  {values}")
    print(f"chosen: {found.reason}")
    print(
        f"table:    {Path(out) / 'trials.csv'}\ndetector: {found.run}\n"
        f"next: normscan evaluate {found.run} --cohort {cohort}"
    )


def _named(text: str) -> tuple[str, str]:
    """Return the name and the values of ``width=16,32``."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise ArgumentError(
            f"space: '{text}' isn't NAME=VALUES, such as width=16,32 or lr=1e-4..1e-2."
        )
    return name.strip().replace("-", "_"), values
