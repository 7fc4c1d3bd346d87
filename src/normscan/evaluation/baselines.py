"""Baselines beside a detector, fitted once for a cohort and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from normscan.cohort import Cohort, Division
from normscan.detector import Detector, load
from normscan.errors import CohortError, NormscanError, OutputError
from normscan.io.cache import cache_folder, code_digest, trim
from normscan.preprocess.cache import describe, enabled
from normscan.progress import Progress

BASELINES = ("mean_image", "image_statistics")


def fit_baseline(name: str, detector: Detector, cohort: Cohort) -> Detector:
    """Fit a baseline with the preprocessing of a detector, or take the one that an earlier fit kept.

    What is kept lies in ``cache_folder("baselines")``, found by the content of the healthy scans and
    by all settings; ``NORMSCAN_CACHE=off`` and ``cache=False`` of the detector keep nothing.
    """
    settings = {**detector.preprocess.to_dict(), "colour": "auto"}
    baseline = Detector(
        name,
        preprocess=settings,
        size=detector.preprocess.size,
        dims=detector.arguments["dims"] or 2,
        fpr=detector.fpr,
        pixel_fpr=detector.pixel_fpr,
        seed=detector.seed,
        gate=False,
        calibration=detector.calibration.kind,
        folds=detector.calibration.folds,
        trim=detector.calibration.trim,
        cache=detector.cache,
    )
    if not (detector.cache and enabled()):
        return baseline.fit(cohort)
    entry = cache_folder("baselines") / _key(baseline, cohort)
    try:
        if entry.is_dir():
            kept = load(entry)
            os.utime(entry)
            return kept
    except (NormscanError, OSError):  # damaged, or another process is removing it
        shutil.rmtree(entry, ignore_errors=True)
    baseline.fit(cohort)
    _keep(baseline, entry)
    return baseline


def _key(baseline: Detector, cohort: Cohort) -> str:
    """Hash what a fit depends on: settings, scans and what stands beside them, code, device."""
    from torch import cuda

    learnt = Division.of(row for row in cohort if row.split in ("train", "val"))
    about = [
        code_digest(), cuda.is_available(), baseline.configuration(), asdict(baseline.calibration),
        describe(baseline.preprocess.steps), cohort.digest(), sorted(learnt.members),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:40]


def _keep(baseline: Detector, entry: Path) -> None:
    """Keep a baseline; a cache that can't be written makes things slow, not wrong."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=entry.parent) as temporary:
            folder = Path(temporary) / "entry"
            baseline.save(folder)
            folder.chmod(0o700)  # it holds mean pixels of patients
            folder.rename(entry)  # fails where another process was faster: its entry is as good
        trim(entry.parent, keep=entry)
    except (OSError, OutputError):
        return


def fit_baselines(
    names: Iterable[str], detector: Detector, cohort: Cohort, bar: Progress
) -> dict[str, Detector]:
    """Fit baselines by name; none where the cohort has no healthy training scans."""
    found: dict[str, Detector] = {}
    names = list(names)
    if names and not len(cohort.part("train")):  # a table of test scans alone
        bar.say("no baselines: the cohort has no healthy scans in train that they could learn from")
        return found
    for name in names:
        if name != detector.card.id:
            try:
                found[name] = fit_baseline(name, detector, cohort.alone())
            except CohortError as error:
                bar.say(f"no baseline {name}: {error}")
    return found
