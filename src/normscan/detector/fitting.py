"""The steps of fitting a detector around its training: before it and after it."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from normscan.cohort import Cohort
from normscan.detector import storage
from normscan.detector.survey import Survey, survey
from normscan.errors import ArgumentError, CohortError
from normscan.progress import Progress
from normscan.quality import Gate
from normscan.rng import derive_seed
from normscan.training.data import PreparedSet, prepare_sets, select_part
from normscan.training.loop import closed_form, seeded
from normscan.wrappers import wrap

if TYPE_CHECKING:
    from normscan.detector import Detector

SURVEY = "survey.json"


def check_cohort(cohort: Cohort) -> None:
    """Refuse a cohort without healthy scans in train or in val.

    Raises:
        CohortError: says which and how to mend it.
    """
    cohort.require_healthy()
    if not len(cohort.part("val")):
        raise CohortError(
            "the cohort has no healthy scans in 'val', which sets the threshold. Give it some."
        )


def prepare(
    detector: Detector, cohort: Cohort, folder: Path, workers: int, bar: Progress
) -> dict[str, PreparedSet]:
    """Settle what depends on the cohort, build the method, prepare its scans, learn the gate.

    Args:
        detector: unfitted.
        cohort: with healthy scans in train and val.
        folder: for the prepared scans.
        workers: processes that prepare.
        bar: shows progress.

    Returns:
        Samples by the name of their part: ``healthy``, ``val`` and what else the method draws from.

    Raises:
        NormscanError: arguments, scans or parts that the method can't work with.
    """
    train, val = cohort.part("train"), cohort.part("val")
    # The method is built before the scans are prepared: a wrong argument shows at once.
    seen = survey(list(train), detector.preprocess, detector.cache)
    _build(detector, seen)
    parts = {name: select_part(cohort, name) for name in _parts(detector)}
    detector.preprocess = detector.preprocess.learn(list(train), workers, detector.cache)
    sets = prepare_sets(folder, parts, detector.preparation(), detector.patch, workers, bar)
    if detector.gated:
        track = partial(bar.track, name="quality gate")
        detector.gate = Gate.of_cohort(list(train), list(val), workers, track)
    storage.write_json(folder / SURVEY, vars(seen))
    return sets


def join(detector: Detector, folder: Path) -> dict[str, PreparedSet]:
    """What ``prepare`` did in another process."""
    _build(detector, Survey(**storage.tupled(storage.read_json(folder / SURVEY))))
    return {p: PreparedSet.open(folder / p, detector.patch) for p in _parts(detector)}


def finish(
    detector: Detector,
    cohort: Cohort,
    sets: dict[str, PreparedSet],
    seconds: dict[str, float],
    device: torch.device,
) -> None:
    """Run the closed-form part and note what the detector was trained on.

    Args:
        detector: its method is trained.
        cohort: that it was trained on.
        sets: as ``prepare`` returned them.
        seconds: of each phase.
        device: where it ran.
    """
    method = detector.method
    assert method is not None
    method.requires_grad_(False).eval()
    if method.fits:
        started = time.monotonic()
        closed_form(method, sets["healthy"], device, detector.seed)
        seconds["fit"] = time.monotonic() - started
    method.eval().requires_grad_(False)
    scans = {name: cohort.part(name) for name in ("train", "val")}
    names = {"healthy": "train"}
    detector.training = {
        "cohort_size": {name: len(part) for name, part in scans.items()},
        "subjects": {name: len({r.subject for r in part}) for name, part in scans.items()},
        "samples": {names.get(name, name): len(samples) for name, samples in sets.items()},
        "left_out": [scan for s in sets.values() for scan, _ in s.failures],
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "device": str(device),
        **method.found(sets["healthy"].scans, sets["healthy"].subjects),
    }


def _parts(detector: Detector) -> list[str]:
    """The parts of the cohort that the method draws from, and the one for the threshold."""
    assert detector.method is not None
    asked = {name for phase in detector.method.phases() for name in phase.part.split("+")}
    return ["healthy", "val", *sorted(asked - {"healthy"})]


def _build(detector: Detector, seen: Survey) -> None:
    """Fix channels, colour and the number of axes, and build the method for them."""
    _settle(detector, seen)
    try:
        with seeded(derive_seed(detector.seed, "weights")):
            detector.method = wrap(detector.card, detector.arguments, detector.wrappers)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArgumentError(
            f"method '{detector.card.id}' can't be built with these arguments: {reason}"
        ) from error


def _settle(detector: Detector, seen: Survey) -> None:
    detector.channels = seen.channels
    settings = {**detector.preprocess.to_dict(), "colour": seen.colour}
    detector.preprocess = storage.build_preprocess(settings)
    dims, known = detector.arguments["dims"] or seen.dims, detector.card.dims
    if dims not in known:
        raise ArgumentError(
            f"method '{detector.card.id}' works on {' or '.join(map(str, known))} spatial axes, "
            f"not {dims}."
        )
    if dims > seen.dims:
        raise ArgumentError(f"dims={dims} was asked for, but the cohort's scans are 2D.")
    if detector.patch is not None and dims < seen.dims:
        raise ArgumentError(
            "patches of the slices of volumes are not supported: leave out patch, or use dims=3."
        )
    detector.arguments |= {"dims": dims, "channels": len(seen.channels)}
