"""Cross-calibration: as many fits as folds, each of which scores the fold that it didn't see."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from normscan.cohort import Cohort
from normscan.detector import fitting
from normscan.detector.healthy import Healthy, decided, score_healthy
from normscan.detector.review import Judge
from normscan.detector.sheets import Sheets
from normscan.detector.state import State
from normscan.detector.survey import Survey, survey
from normscan.methods.base import Method
from normscan.methods.folds import Folds, Only
from normscan.progress import Progress
from normscan.quality import Gate
from normscan.rng import derive_seed, seeded
from normscan.training.checkpoint import load_state, save_state
from normscan.training.data import PreparedSet, healthy_folds, prepare_sets, select_part
from normscan.training.folder import CACHE, FOLDS, MAPS, MEMBER
from normscan.training.loop import Trainer, in_order

if TYPE_CHECKING:
    from lightning_fabric import Fabric

REFITTED = "all"


@dataclass(frozen=True)
class Work:
    """What the fits of all folds share.

    Attributes:
        asked: with settled calibration and learnt preprocessing.
        built: the same, with a method that is not fitted yet.
        seen: of the cohort.
        parts: healthy scans of each fold.
        sets: prepared samples of each fold, and by name of what else the method draws from.
        folder: of the run.
        fabric: device and precision.
        bar: shows progress.
        sheets: where the maps of healthy scans are kept, if a reduction is still to be settled.
    """

    asked: State
    built: State
    seen: Survey
    parts: list[Cohort]
    sets: dict[str, PreparedSet]
    folder: Path
    fabric: Fabric
    bar: Progress
    sheets: Sheets | None = None

    def fold(self, number: int) -> PreparedSet:
        """Prepared samples of a fold, counted from 1."""
        return self.sets[f"fold{number}"]


def fit(
    asked: State, cohort: Cohort, folder: Path, fabric: Fabric, workers: int, bar: Progress
) -> tuple[State, Healthy, list[Judge]]:
    """Fit a member without each fold, score that fold with it, and decide from all scores.

    Args:
        asked: unfitted; its calibration is ``cross``.
        cohort: with healthy scans in train or val, which are taken together.
        folder: of the run; a fold that is done is not fitted again.
        fabric: device and precision of one process.
        workers: processes that prepare scans.
        bar: shows progress.

    Returns:
        The fitted state, the out-of-fold scores, and which member scored which scans.
    """
    work = begin(asked, cohort, folder, fabric, workers, bar)
    one, again = fitting.built(work.built).leaves_out, asked.calibration.refit
    fits = 1 + again if one else len(work.parts) + again
    bar.say(
        "the method is fitted once, and each fold is left out of that in turn"
        if fits == 1
        else f"the method is fitted {fits} times"
    )
    way = together if one else one_by_one
    method, healthy, seconds = way(work)
    apart = (
        list(method)
        if isinstance(method, Folds)
        else [Only(method, k) for k in range(len(work.parts))]
    )
    judges = [
        (work.built.changed(method=alone), part)
        for alone, part in zip(apart, work.parts, strict=True)
    ]
    if asked.calibration.refit:
        bar.say("all healthy scans together")
        method, _, spent = member(work, 0)
        seconds |= {f"refit/{name}": value for name, value in spent.items()}
    method.eval().requires_grad_(False)
    training = _training(work, healthy, seconds)
    state = work.built.changed(method=method, gate=work.asked.gate, training=training)
    return decided(state, healthy), healthy, judges


def begin(
    asked: State, cohort: Cohort, folder: Path, fabric: Fabric, workers: int, bar: Progress
) -> Work:
    """Survey all healthy scans, let the steps learn from them, and prepare every scan once.

    The steps that learn see the scans of every fold; they fix few numbers, such as histogram
    landmarks, and all members must share them.
    """
    parts = healthy_folds(cohort, asked.calibration.folds, fold_seed(asked.seed))
    rows = [row for part in parts for row in part]
    seen = survey(rows, asked.preprocess, asked.cache)
    built = fitting.build(asked, seen)
    learnt = built.preprocess.learn(rows, workers, asked.cache)
    extras = [name for name in fitting.parts_of(built) if name not in ("healthy", "val")]
    folds = {f"fold{number}": part for number, part in enumerate(parts, start=1)}
    drawn = folds | {name: select_part(cohort, name) for name in extras}
    drawn = fitting.checked(built, cohort, drawn)
    state, method = built.changed(preprocess=learnt), fitting.built(built)
    preparation = state.preparation()
    others, first = [row for part in parts[1:] for row in part], list(parts[0])
    aside = Gate.aside(others, first) if asked.gated else None
    sets = prepare_sets(
        folder / CACHE, drawn, preparation, asked.patch, method, workers, bar, aside
    )
    if aside is not None:
        gate = Gate.of_cohort(others, first, workers, measured=aside.found)
        asked = asked.changed(gate=gate)
    kept = Sheets.needed(asked, rows, folder / MAPS)
    asked = asked.changed(preprocess=learnt)
    return Work(asked, state, seen, parts, sets, folder, fabric, bar, kept)


def one_by_one(work: Work) -> tuple[Method, Healthy, dict[str, float]]:
    """Fit the method without each fold in turn."""
    members, scored, seconds = [], [], dict[str, float]()
    count = len(work.parts)
    kept = [n for n in range(1, count + 1) if _stored_at(work, n).exists()]
    if kept:
        named = f"fold {kept[0]} is" if len(kept) == 1 else f"folds {', '.join(map(str, kept))} are"
        work.bar.say(f"{named} kept from before, of {count}")
    for number in range(1, count + 1):
        if number not in kept:
            work.bar.say(f"fold {number} of {count}")
        method, healthy, spent = member(work, number)
        members.append(method)
        scored.append(healthy)
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value
    return Folds(members), Healthy.join(scored), seconds


def together(work: Work) -> tuple[Method, Healthy, dict[str, float]]:
    """Fit a method once that can leave out each fold in turn."""
    state, device, seed = work.built, work.fabric.device, work.built.seed
    method = fitting.built(state)
    method.to(device).requires_grad_(False).eval()
    folds = [work.fold(number) for number in range(1, len(work.parts) + 1)]
    started = time.monotonic()
    with seeded(seed):
        method.fit_folds([in_order(fold, device, seed) for fold in folds])
    method.eval()
    seconds = {"fit": time.monotonic() - started}
    scored = [
        score_healthy(state.changed(method=Only(method, k)), part, work.bar, k + 1, work.sheets)
        for k, part in enumerate(work.parts)
    ]
    return method, Healthy.join(scored), seconds


def fold_seed(seed: int) -> int:
    """Seed of the order in which subjects are dealt out to the folds."""
    return derive_seed(seed, "folds")


def member(work: Work, number: int) -> tuple[Method, Healthy, dict[str, float]]:
    """Fit the method without a fold and score that fold, or read what an earlier run did.

    Args:
        work: what the folds share.
        number: of the fold, from 1; 0 to fit to all of them and score nothing.

    Returns:
        The method, the scores of the fold, and the seconds of each phase.
    """
    path = _stored_at(work, number)
    state = fitting.build(work.asked, work.seen)
    method = fitting.built(state)
    if path.exists():
        stored = load_state(path)
        method.to(work.fabric.device).load_weights(stored["method"])
        return method.requires_grad_(False).eval(), _healthy(stored, work), stored["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = _fit(work, state, number, path.parent)
    healthy = Healthy()
    if number:
        healthy = score_healthy(state, work.parts[number - 1], work.bar, number, work.sheets)
    stored = {"method": dict(method.state_dict()), "seconds": seconds}
    save_state(path, stored | _stored(healthy))
    return method, healthy, seconds


def _stored_at(work: Work, number: int) -> Path:
    return work.folder / FOLDS / (str(number) if number else REFITTED) / MEMBER


def _fit(work: Work, state: State, number: int, folder: Path) -> dict[str, float]:
    method = fitting.built(state)
    numbers = [n for n in range(1, len(work.parts) + 1) if n != number]
    # A fold that stops the training or picks its weights must not be the one that calibrates.
    watched = None
    if len(numbers) > 1 and any(phase.validate_every for phase in method.phases()):
        watched = numbers[number % len(numbers)]
        numbers.remove(watched)
    healthy = PreparedSet.join([work.fold(n) for n in numbers])
    sets = {"healthy": healthy, **{k: s for k, s in work.sets.items() if not k.startswith("fold")}}
    validation = None if watched is None else work.fold(watched)
    seed, bar = state.seed, work.bar
    trainer = Trainer(
        method, sets, validation, folder, work.fabric, seed, bar.update,
        lambda text: bar.say(f"fold {number}: {text}"),
    )  # fmt: skip
    seconds = trainer.run()
    fitting.closed_form_part(method, sets, seconds, work.fabric, seed)
    return seconds


def _stored(healthy: Healthy) -> dict[str, Any]:
    images = [[torch.from_numpy(np.array(points)), n] for points, n in healthy.images]
    looks = [torch.from_numpy(look) for look in healthy.looks]
    levels = [torch.from_numpy(np.array(one)) for one in healthy.levels]
    arrays = {"images": images, "looks": looks, "levels": levels}
    return {"healthy": {**vars(healthy), **arrays}}


def _healthy(stored: dict[str, Any], work: Work) -> Healthy:
    values = stored["healthy"]
    images = [(points.numpy(), n) for points, n in values["images"]]
    levels = [one.numpy() for one in values.get("levels", [])]
    # The run folder may have been moved since.
    sheets = [] if work.sheets is None else [str(work.sheets.path(s)) for s in values["scans"]]
    failures = [(scan, reason) for scan, reason in values["failures"]]
    looks = [look.numpy() for look in values["looks"]]
    return replace(
        Healthy(**values),
        images=images,
        looks=looks,
        levels=levels,
        failures=failures,
        sheets=sheets,
    )


def _training(work: Work, healthy: Healthy, seconds: dict[str, float]) -> dict[str, Any]:
    rows = [row for part in work.parts for row in part]
    sets = {name: s for name, s in work.sets.items() if not name.startswith("fold")}
    folds = [work.fold(n) for n in range(1, len(work.parts) + 1)]
    samples = {"train": sum(map(len, folds)), **{name: len(s) for name, s in sets.items()}}
    return {
        "cohort_size": {"train": len(rows), "val": 0},
        "subjects": {"train": len({r.subject for r in rows}), "val": 0},
        "folds": len(folds),
        "samples": samples,
        "left_out": [scan for s in [*folds, *sets.values()] for scan, _ in s.failures],
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "device": str(work.fabric.device),
    }


def remove_members(folder: Path) -> None:
    """Remove what a finished run no longer needs; the folds' logs stay."""
    for path in (folder / FOLDS).glob("*/*.safetensors"):
        path.unlink()
    if (folder / FOLDS / REFITTED).is_dir() and not any((folder / FOLDS / REFITTED).iterdir()):
        shutil.rmtree(folder / FOLDS / REFITTED)
