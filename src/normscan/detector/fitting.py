"""How a detector is fitted, from top to bottom.

``survey -> build -> prepare -> train -> fit_closed_form -> score_healthy -> decided``: each step takes
plain values and returns plain values; ``fit`` puts them in a row. ``detector.run`` claims the run
folder before and writes the detector after it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscan.cohort import Cohort
from normscan.detector.healthy import Healthy, decided, score_healthy
from normscan.detector.review import Judge
from normscan.detector.sheets import Sheets
from normscan.detector.state import State
from normscan.detector.survey import Survey, survey, unseen
from normscan.errors import ArgumentError, CohortError, NormscanError
from normscan.io.values import read_json, tupled, write_json
from normscan.methods.base import Method
from normscan.preprocess.settings import build_preprocess
from normscan.progress import Progress
from normscan.quality import Gate
from normscan.registry import Card, load_all
from normscan.rng import derive_seed, seeded
from normscan.training.data import PreparedSet, check_companions, like, prepare_sets, select_part
from normscan.training.folder import CACHE, MAPS
from normscan.training.loop import Trainer, closed_form
from normscan.wrappers import wrap

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SURVEY = "survey.json"

# Training samples by the name of their part: ``healthy``, ``val`` and what else a method draws from.
Sets = dict[str, PreparedSet]


def admit(asked: State, cohort: Cohort) -> Cohort:
    """Return the cohort as the regime of the method and the calibration may see it.

    Raises:
        CohortError: it has no healthy scans in train or in val, or fewer than ``shots``; says which
            and how to mend it. A single healthy subject is enough to train, without a threshold.
    """
    if asked.card.regime == "zero-shot":
        return cohort.references(0, 0)
    cohort.require_healthy()
    if asked.card.regime == "few-shot":
        seed = derive_seed(asked.seed, "references")
        cohort = cohort.references(asked.arguments["shots"], seed)
    crossed = asked.calibration.kind == "cross"
    alone = len({row.subject for row in cohort.part("train")}) == 1
    if not (len(cohort.part("val")) or crossed or alone or asked.card.may_stay_open):
        raise CohortError(
            "the cohort has no healthy scans in 'val', which sets the threshold. Give it some."
        )
    return cohort


def fit(
    asked: State, cohort: Cohort, folder: Path, fabric: Fabric, workers: int, bar: Progress
) -> tuple[State, Healthy, list[Judge]]:
    """Train on the healthy scans of train, then decide by those of val.

    Args:
        asked: unfitted.
        cohort: with healthy scans in train and val.
        folder: of the run.
        fabric: device, precision, processes.
        workers: processes that prepare scans.
        bar: shows progress.

    Returns:
        The fitted state, the scores of val, and who scored which scans; in a process that isn't the
        first of several, without thresholds and scores.
    """
    state, sets = _begin_everywhere(fabric, asked, cohort, folder / CACHE, workers, bar)
    seconds = train(state, sets, folder, fabric, bar)
    state = fit_closed_form(state, cohort, sets, seconds, fabric)
    if not fabric.is_global_zero:
        return state, Healthy(), []
    val = cohort.part("val")
    healthy = score_healthy(state, val, bar, 0, Sheets.needed(state, val, folder / MAPS))
    return decided(state, healthy), healthy, [(state, val)]


def _begin_everywhere(
    fabric: Fabric, asked: State, cohort: Cohort, folder: Path, workers: int, bar: Progress
) -> tuple[State, Sets]:
    """Begin in the first process; the others take over what it wrote, or end where it failed."""
    problem: NormscanError | None = None
    if fabric.is_global_zero:
        try:
            begun = begin(asked, cohort, folder, workers, bar)
        except NormscanError as error:
            problem = error
    if fabric.broadcast(problem is not None):
        raise problem or SystemExit(1)  # the first process says what is wrong, the others end
    taken = begun if fabric.is_global_zero else join(asked, folder)
    fabric.broadcast(True)  # a first process that fails at once would remove what the others read
    return taken


def begin(
    asked: State, cohort: Cohort, folder: Path, workers: int, bar: Progress
) -> tuple[State, Sets]:
    """Survey the cohort, build the method and prepare the scans.

    Args:
        asked: unfitted.
        cohort: with healthy scans in train and val.
        folder: for the prepared scans.
        workers: processes that prepare.
        bar: shows progress.

    Raises:
        NormscanError: arguments, scans or parts that the method can't work with.
    """
    train = list(cohort.part("train"))
    # The method is built before the scans are prepared: a wrong argument shows at once.
    # Without training scans the others show what kind of scans they are.
    looked = train or list(cohort.part("val")) or list(cohort)
    if looked:
        seen = survey(looked, asked.preprocess, asked.cache)
    else:
        seen = unseen(asked.arguments["dims"] or asked.card.dims[0], asked.preprocess)
    state, sets = prepare(build(asked, seen), cohort, folder, workers, bar)
    write_json(folder / SURVEY, vars(seen))
    return state, sets


def join(asked: State, folder: Path) -> tuple[State, Sets]:
    """Return what ``begin`` did in another process."""
    state = build(asked, Survey(**tupled(read_json(folder / SURVEY))))
    method = built(state)
    there = [p for p in parts_of(state) if (folder / p).is_dir()]
    sets = {p: PreparedSet.open(folder / p, state.patch, method.context) for p in there}
    return state, sets


def built(state: State) -> Method:
    """Return the method of a state that has one."""
    assert state.method is not None
    return state.method


def build(asked: State, seen: Survey) -> State:
    """Fix channels, colour and the number of axes, and build the method for them.

    Raises:
        ArgumentError: values that don't fit the method or the scans.
    """
    card, dims = asked.card, asked.arguments["dims"] or seen.dims
    if dims not in card.dims:
        raise ArgumentError(
            f"method '{card.id}' works on {' or '.join(map(str, card.dims))} spatial axes, "
            f"not {dims}."
        )
    if dims > seen.dims:
        raise ArgumentError(f"dims={dims} was asked for, but the cohort's scans are 2D.")
    if asked.patch is not None and dims < seen.dims:
        raise ArgumentError(
            "patches of the slices of volumes are not supported: leave out patch, or use dims=3."
        )
    arguments = asked.arguments | {"dims": dims, "channels": len(seen.channels)}
    if seen.targets and "targets" in arguments:
        arguments["targets"] = len(seen.targets)
    if seen.further:
        arguments["further"] = _further_of(card, seen)
    try:
        with seeded(derive_seed(asked.seed, "weights")):
            method = wrap(card, arguments, asked.wrappers)
    except (RuntimeError, ValueError, TypeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArgumentError(
            f"method '{card.id}' can't be built with these arguments: {reason}"
        ) from error
    if not isinstance(method.context, int) or method.context < 0:
        raise ArgumentError(
            f"method '{card.id}' asks for {method.context!r} neighbouring slices on each side "
            "(Method.context): give a whole number, 0 or more."
        )
    if method.context and (dims > 2 or asked.patch is not None):
        raise ArgumentError(
            f"method '{card.id}' looks at {method.context} slices on each side: it needs whole "
            "slices, dims=2 without patch."
        )
    preprocess = build_preprocess({**asked.preprocess.to_dict(), "colour": seen.colour})
    return asked.changed(
        arguments=arguments, preprocess=preprocess, channels=seen.channels, method=method
    )


def _further_of(card: Card, seen: Survey) -> tuple[tuple[str, int], ...]:
    """The further images of a cohort's cases, for a method that looks at them.

    Raises:
        ArgumentError: it sees one image of a case; says which methods see several.
    """
    if "further" in card.defaults:
        return seen.further
    names = [name for name, _ in seen.further]
    able = [id for id, other in load_all().items() if "further" in other.defaults]
    raise ArgumentError(
        f"a case of this cohort is several images of different shape: beside the one in 'path' there "
        f"is {', '.join(names)}. Method '{card.id}' sees one image. Take the column "
        f"{' and '.join(f'further_{name}' for name in names)} out of the table (cohort.alone() in "
        f"Python) to use the image in 'path' by itself, or a method that sees all: {', '.join(able)}."
    )


def prepare(
    state: State, cohort: Cohort, folder: Path, workers: int, bar: Progress
) -> tuple[State, Sets]:
    """Let the steps learn, prepare every scan that the method draws from, learn the gate."""
    train, val = list(cohort.part("train")), list(cohort.part("val"))
    method = built(state)
    parts = checked(state, cohort, {name: select_part(cohort, name) for name in parts_of(state)})
    state = state.changed(preprocess=state.preprocess.learn(train, workers, state.cache))
    preparation = state.preparation()
    aside = Gate.aside(train, val) if state.gated and train else None
    sets = prepare_sets(folder, parts, preparation, state.patch, method, workers, bar, aside)
    if aside is not None:
        track = partial(bar.track, name="quality gate")
        gate = Gate.of_cohort(train, val, workers, track, measured=aside.found)
        state = state.changed(gate=gate)
    return state, sets


def checked(state: State, cohort: Cohort, parts: Mapping[str, Cohort]) -> dict[str, Cohort]:
    """Return the parts that hold scans, all with what the method uses beside them.

    Raises:
        ArgumentError: an auxiliary cohort that the method doesn't learn from.
        CohortError: scans without what must stand beside them.
    """
    if cohort.auxiliary is not None and "auxiliary" not in parts:
        raise ArgumentError(f"method '{state.card.id}' learns from no auxiliary cohort.")
    held = {name: part for name, part in parts.items() if len(part)}
    for name, part in held.items():
        check_companions(part, like(name), built(state).companions(like(name)))
    return held


def parts_of(state: State) -> list[str]:
    """The parts of the cohort that the method learns from, and the one for its validation loss."""
    if state.card.regime == "zero-shot":
        return []
    asked = {name for phase in built(state).phases() for name in phase.part.split("+")}
    asked |= set(built(state).fits_on)
    return ["healthy", "val", *sorted(asked - {"healthy"})]


def train(
    state: State, sets: Sets, folder: Path, fabric: Fabric, bar: Progress
) -> dict[str, float]:
    """Train the method in place, from the checkpoint in the folder if there is one.

    Returns:
        Seconds of each phase.
    """
    method, name = built(state), state.card.id
    named = {"healthy": "training", "val": "validation"}
    numbers = ", ".join(f"{len(s)} {named.get(part, part)}" for part, s in sets.items())
    bar.say(f"{name}: {numbers or 'no training'} samples")
    if sets and (need := method.need(len(sets["healthy"]))):
        bar.say(f"{name}: {need}")
    trainer = Trainer(
        method, sets, sets.get("val"), folder, fabric, state.seed, bar.update, bar.say
    )
    return trainer.run()


def fit_closed_form(
    state: State, cohort: Cohort, sets: Sets, seconds: dict[str, float], fabric: Fabric
) -> State:
    """Run the closed-form part of a trained method and note what it was trained on.

    Args:
        state: its method is trained.
        cohort: that it was trained on.
        sets: that it was trained on.
        seconds: of each phase.
        fabric: device and processes.
    """
    method = built(state)
    closed_form_part(method, sets, seconds, fabric, state.seed)
    scans = {name: cohort.part(name) for name in ("train", "val")}
    names = {"healthy": "train"}
    training: dict[str, Any] = {
        "cohort_size": {name: len(part) for name, part in scans.items()},
        "subjects": {name: len({r.subject for r in part}) for name, part in scans.items()},
        "samples": {names.get(name, name): len(samples) for name, samples in sets.items()},
        "left_out": [scan for s in sets.values() for scan, _ in s.failures],
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
        "device": str(fabric.device),
    }
    if sets:
        training |= method.found(sets["healthy"].scans, sets["healthy"].subjects)
    if state.card.regime == "few-shot":
        training["references"] = [
            {"scan": row.scan, "sha256": row.content()}
            for row in scans["train"] if row.scan in sets["healthy"].scans
        ]  # fmt: skip
    return state.changed(training=training)


def closed_form_part(
    method: Method,
    sets: Sets,
    seconds: dict[str, float],
    fabric: Fabric,
    seed: int,
) -> None:
    """Run the closed-form part, if there is one; the method ends frozen, in evaluation mode."""
    method.to(fabric.device).requires_grad_(False).eval()
    if method.fits and "healthy" in sets:
        started = time.monotonic()
        seen = PreparedSet.join([sets[name] for name in method.fits_on])
        closed_form(method, seen, fabric, seed)
        seconds["fit"] = time.monotonic() - started
    method.eval().requires_grad_(False)


def calibrate(state: State, healthy: Cohort, bar: Progress) -> State:
    """Set the scan and the pixel threshold on healthy scans that did not train; see ``decided``."""
    with tempfile.TemporaryDirectory(prefix="normscan-") as folder:
        sheets = Sheets.needed(state, healthy, Path(folder))
        return decided(state, score_healthy(state, healthy, bar, 0, sheets))
