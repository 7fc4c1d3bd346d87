"""The search: arguments are proposed, healthy evidence judges them, and the chosen one is fitted."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from normscan.auto.evidence import CLEAR, weigh
from normscan.auto.plan import FEW
from normscan.cohort import Cohort
from normscan.detector import Detector, fitting
from normscan.errors import ArgumentError
from normscan.io.atomic import atomic_path
from normscan.io.lock import one_writer
from normscan.io.values import write_json
from normscan.progress import Progress
from normscan.training.folder import CONFIG, claim_folder
from normscan.tune.space import space_of
from normscan.tune.study import GivenUpError, Proposal, Study
from normscan.tune.trial import Judging, Outcome, worker

TABLE, RECORD, RUN, PREPARED = "trials.csv", "tune.json", "run", "prepared"
Ended = Outcome | str | None  # judged, failed with a reason, or given up


@dataclass(frozen=True)
class Asked:
    """What to search, and how long.

    Attributes:
        method: id.
        preset: of the method.
        space: by argument, see ``space_of``.
        trials: at most; the first one has the preset's own arguments.
        minutes: of trials, after which no further one begins; None for no limit.
        seed: of everything random.
        options: of ``Detector``, and arguments that all trials have.
        planted: anomalies that judge, about.
        device: that trains.
    """

    method: str
    preset: str = "laptop"
    space: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 20
    minutes: float | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    planted: int = 120
    device: str = "auto"

    def detector(self, arguments: Mapping[str, Any]) -> Detector:
        """Return the unfitted detector with some arguments."""
        return Detector(
            self.method, preset=self.preset, seed=self.seed, **{**self.options, **arguments}
        )


@dataclass(frozen=True)
class Engine:
    """Where trials run.

    Attributes:
        kind: ``local``, one after the other, or ``ray``.
        workers: of ray.
        address: of a running cluster of Ray; None starts one.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int = 1
    address: str | None = None


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        arguments: that were chosen, of those that were searched; empty where the preset's stay.
        reason: why.
        trials: a row each, as in the table.
        run: folder of the fitted detector.
    """

    arguments: dict[str, Any]
    reason: str
    trials: list[dict[str, Any]]
    run: Path


def tune(
    asked: Asked,
    cohort: Cohort,
    out: Path,
    resume: bool = False,
    engine: Engine | None = None,
    progress: bool = False,
) -> Tuned:
    """Search the arguments of a method, choose by evidence from healthy scans, and fit a detector.

    Every trial trains on the training subjects but those that judge; anomalies of ten kinds are
    planted into the scans of these, see ``auto.evidence``. Scans of val set the threshold of the
    detector and never choose, and no label of test is read. The preset's own arguments stay unless
    others are clearly better.

    Args:
        asked: what to search.
        cohort: with healthy scans in train, and for the threshold in val.
        out: folder; the detector goes to ``run`` in it.
        resume: go on with the search in the folder.
        engine: where trials run.
        progress: show progress on stderr.

    Raises:
        ArgumentError: Optuna is missing, a wrong value, a method that healthy scans can't judge, or
            no trial that came to its end.
        CohortError: too few healthy subjects.
        OutputError: ``out`` holds something else, or a search with other settings.
    """
    engine = engine or Engine()
    first = asked.detector({})
    if first.card.regime != "healthy" or first.card.id == "auto":
        raise ArgumentError(
            f"'{asked.method}' can't be tuned: it doesn't learn from healthy scans alone, or chooses by "
            "planted anomalies itself."
        )
    space = space_of(asked.space, first.card, asked.preset)
    if asked.trials < 1 or engine.workers < 1:
        raise ArgumentError(
            f"trials is {asked.trials}, workers {engine.workers}: both must be 1 or more."
        )
    train, out = cohort.part("train"), Path(out)
    with one_writer(out), Progress(progress) as bar:
        kept = {k: v for k, v in vars(asked).items() if k not in ("trials", "minutes", "device")}
        kept |= {"space": dict(asked.space), "options": dict(asked.options)}
        claim_folder(out, {"tune": kept, "healthy": train.digest()}, resume)
        study = Study(space, first.asked().arguments, out, asked.seed)
        judging = _judging(asked, train, out)
        if len(study.over()) < asked.trials:
            fitting.begin(first.asked().changed(gated=False), train, judging.folder, 1, bar)
            _search(study, judging, asked, engine, bar)
        rows, chosen, reason, about = decided(study, asked.seed)
        _write_table(out / TABLE, rows)
        write_json(out / RECORD, {"chosen": chosen, "reason": reason, **about, "trials": rows})
        bar.say(f"chosen: {reason}")
        shutil.rmtree(judging.folder, ignore_errors=True)
    run = out / RUN
    resumed = (run / CONFIG).exists()
    asked.detector(chosen).fit(cohort, run, device=asked.device, resume=resumed, progress=progress)
    return Tuned(chosen, reason, rows, run)


def _judging(asked: Asked, train: Cohort, out: Path) -> Judging:
    subjects = len({row.subject for row in train})
    return Judging(
        asked.method, asked.preset, dict(asked.options), asked.seed, 3 if subjects < FEW else 4,
        asked.planted, asked.device, out / PREPARED,
    )  # fmt: skip


def _search(study: Study, judging: Judging, asked: Asked, engine: Engine, bar: Progress) -> None:
    """Run trials until there are enough of them, the time is over, or nothing is left to try."""
    at_once = engine.workers if engine.kind == "ray" else 1
    while True:
        done = len(study.over())
        over = asked.minutes is not None and done and study.seconds > 60 * asked.minutes
        wave = [] if over else study.proposals(min(at_once, asked.trials - done), asked.trials)
        if not wave:
            return
        ended = (
            _on_ray(judging, wave, engine) if engine.kind == "ray" else _here(judging, wave, study)
        )
        for (number, arguments), outcome in zip(wave, ended, strict=True):
            study.tell(number, arguments, outcome)
            done += 1
            bar.say(f"trial {done} of {asked.trials}: {_named(arguments)}: {_said(outcome)}")


def _here(judging: Judging, wave: Sequence[Proposal], study: Study) -> Iterator[Ended]:
    """Run trials in this process, where the study may give one up."""
    for number, arguments in wave:
        try:
            yield worker(judging, partial(study.watch, number))((number, arguments))
        except GivenUpError:
            yield None


def _on_ray(judging: Judging, wave: Sequence[Proposal], engine: Engine) -> Iterator[Ended]:
    from normscan.ray import LostError, over

    build = partial(worker, judging)
    for outcome in over(build, wave, min(engine.workers, len(wave)), engine.address):
        yield str(outcome) if isinstance(outcome, LostError) else outcome


def _named(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in arguments.items()) or "as in the preset"


def _said(outcome: Ended) -> str:
    if outcome is None:
        return "given up"
    return f"AUROC {outcome.mean():.3f}" if isinstance(outcome, Outcome) else f"failed: {outcome}"


def decided(
    study: Study, seed: int
) -> tuple[list[dict[str, Any]], dict[str, Any], str, dict[str, Any]]:
    """Return a row for each trial, the chosen arguments, why, and who judged.

    Raises:
        ArgumentError: no trial came to its end.
    """
    trials = study.over()
    outcomes = {
        n: Outcome(**t.user_attrs["outcome"])
        for n, t in enumerate(trials)
        if "outcome" in t.user_attrs
    }
    if not outcomes:
        reasons = {t.user_attrs.get("reason", "given up") for t in trials}
        raise ArgumentError(f"no trial came to its end: {'; '.join(sorted(reasons))}")
    trial = next(iter(outcomes.values())).trial
    found = weigh(trial, [one.scores for one in outcomes.values()], seed)
    figures = dict(
        zip(outcomes, zip(found.mean, found.error, found.behind, strict=True), strict=True)
    )
    rows = []
    for number, record in enumerate(trials):
        mean, error, behind = figures.get(number, (None, None, None))
        told = record.user_attrs
        rows.append({
            "trial": number + 1,
            **{name: told["arguments"].get(name, study.usual[name]) for name in study.space},
            "auroc": _rounded(mean), "error": _rounded(error), "behind_error": _rounded(behind),
            "seconds": told.get("seconds"),
            "ended": "judged" if number in figures else told.get("reason", "given up"),
        })  # fmt: skip
    best = max(figures, key=lambda n: figures[n][0])
    at, reason = _choice(figures, best, len(outcomes), trial.people, len(trial.kinds))
    about = {
        "judged_by": {"subjects": trial.people, "planted": len(trial.kinds)},
        "kinds_that_count": int(np.sum(found.counted)),
    }
    return rows, dict(trials[at].user_attrs["arguments"]), reason, about


def _choice(
    figures: Mapping[int, tuple[float, float, float]],
    best: int,
    count: int,
    people: int,
    planted: int,
) -> tuple[int, str]:
    """Return the number of the chosen trial and why: the preset's own unless another is clearly better."""
    judges = f"by {planted} anomalies planted into scans of {people} healthy subjects"
    top = figures[best][0]
    if 0 not in figures:
        return best, f"trial {best + 1} of {count} found most, AUROC {top:.3f} {judges}"
    mean, _, behind = figures[0]
    if best == 0:
        return (
            0,
            f"the preset's own arguments found most of {count} trials, AUROC {top:.3f} {judges}",
        )
    gain = f"{top - mean:.3f} more than the preset's own (standard error {behind:.3f})"
    if top - mean > CLEAR * behind:
        return best, f"trial {best + 1} of {count} found most, AUROC {top:.3f} {judges}, {gain}"
    return 0, (
        f"the preset's own arguments stay: the best of {count} trials found only {gain}, {judges}, which "
        "may be chance"
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    lines = csv.DictWriter(text, list(rows[0]))
    lines.writeheader()
    lines.writerows(rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
