"""One trial of a search: a method with some arguments, trained, and judged as by ``auto``.

The judges are training subjects that the trial doesn't train on; anomalies are planted into their
scans. Scans of val and test take no part, nor does any label.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normscan.auto.evidence import Scores, Trial
from normscan.auto.fused import FEWEST, Fused
from normscan.auto.kinds import KINDS
from normscan.auto.member import Member
from normscan.detector import Detector, fitting
from normscan.errors import CohortError, NormscanError
from normscan.methods.base import Method
from normscan.rng import derive_seed, seeded
from normscan.training.data import PreparedSet
from normscan.training.fabric import launch_fabric
from normscan.training.loop import Trainer, in_order

Watch = Callable[[int, float], None]  # is told the part of a training and the AUROC; may stop it
LOOKS = 3  # parts of a training, after each but the last of which it is judged


@dataclass(frozen=True)
class Judging:
    """How trials are judged, the same for all.

    Attributes:
        method: id.
        preset: of it.
        options: of ``Detector``, without the method's arguments that are searched.
        seed: of everything random.
        every: one of so many training subjects judges.
        planted: anomalies, about.
        device: that trains.
        folder: with the prepared scans, and for a trial's files.
    """

    method: str
    preset: str
    options: dict[str, Any]
    seed: int
    every: int
    planted: int
    device: str
    folder: Path

    def asked(self, **changes: Any) -> Detector:
        """Return the unfitted detector with some arguments."""
        return Detector(
            self.method, preset=self.preset, seed=self.seed, **{**self.options, **changes}
        )


@dataclass(frozen=True)
class Outcome:
    """What a trial found, as plain values that a study can store.

    Attributes:
        healthy: scores of the judges' healthy images.
        planted: scores of their planted twins.
        skipped: kinds that don't count.
        subjects: of the healthy images.
        hosts: of the planted ones.
        kinds: of the planted ones.
        seconds: that it took.
    """

    healthy: list[float]
    planted: list[float]
    skipped: list[bool]
    subjects: list[int]
    hosts: list[int]
    kinds: list[int]
    seconds: float = 0.0

    @classmethod
    def of(cls, trial: Trial, scores: Scores, usual: str) -> Outcome:
        """Return it for the image score that a detector will take by itself."""
        return cls(
            scores.healthy[usual].tolist(),
            scores.planted[usual].tolist(),
            scores.skipped.tolist(),
            trial.subjects.tolist(),
            trial.hosts.tolist(),
            trial.kinds.tolist(),
        )

    @property
    def trial(self) -> Trial:
        """Whose images judged."""
        return Trial(
            np.array(self.subjects, int), np.array(self.hosts, int), np.array(self.kinds, int),
            len(KINDS),
        )  # fmt: skip

    @property
    def scores(self) -> Scores:
        """The scores as evidence takes them."""
        healthy, planted = np.array(self.healthy), np.array(self.planted)
        return Scores({"usual": healthy}, {"usual": planted}, np.array(self.skipped, bool))

    def mean(self) -> float:
        """Return the mean AUROC over all kinds that count for the method."""
        areas = self.trial.areas(
            np.array(self.healthy), np.array(self.planted), np.ones((self.trial.people, 1))
        )[:, 0]
        return float(np.nanmean(np.where(self.skipped, np.nan, areas)))


def worker(
    judging: Judging, watch: Watch | None = None
) -> Callable[[tuple[int, dict[str, Any]]], Outcome | str]:
    """Return what runs a trial, (number, arguments), to its outcome or why it failed.

    What ``watch`` raises goes through, and so does that the judges are too few.
    """

    def run(item: tuple[int, dict[str, Any]]) -> Outcome | str:
        try:
            return judged(judging, *item, watch)
        except CohortError:
            raise
        except (NormscanError, RuntimeError, ValueError, ArithmeticError) as error:
            return " ".join(str(error).split())[:300]

    return run


def judged(
    judging: Judging, number: int, arguments: Mapping[str, Any], watch: Watch | None = None
) -> Outcome:
    """Train a method with some arguments and let planted anomalies judge it.

    Args:
        judging: what all trials share.
        number: of the trial.
        arguments: that are searched.
        watch: see ``Watch``; a method with a closed-form part isn't watched.

    Raises:
        CohortError: too few subjects to judge.
        NormscanError: the method can't be built or trained with these arguments.
    """
    begun = time.monotonic()
    folder = judging.folder / f"trial{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    state, sets = fitting.join(judging.asked(**arguments).asked(), judging.folder)
    healthy: PreparedSet = sets["healthy"]
    with seeded(derive_seed(judging.seed, "weights")):
        method: Method = fitting.built(state)
    # Trials that want fewer pixels get their own smaller copy of the images that judge.
    side = min(int(healthy.images.shape[-1]), int(state.arguments.get("size") or 10**9))
    usual = state.reduction
    member = Member(f"{judging.method}:{judging.preset}", method, side, state.postprocess, usual)
    fused = Fused([member], judging.every, 1.0, judging.seed, judging.planted)
    fabric = launch_fabric(judging.device, 1, "32-true")

    def look() -> Outcome:
        training = {m: m.training for m in fused.modules()}
        fused.eval()
        trial, (scores,), alone = fused.evidence(in_order(healthy, fabric.device, judging.seed))
        for module, mode in training.items():
            module.training = mode
        if alone or not len(trial.kinds):
            raise CohortError(
                f"{trial.people} training subjects would judge, too few: {FEWEST} are needed, one of "
                f"{judging.every}. Give more healthy scans in train."
            )
        return Outcome.of(trial, scores, usual)

    last = fused.phases()[-1].name if fused.phases() else ""
    watched = watch if watch is not None and not method.fits else None

    def report(phase: str, step: int, steps: int, text: str) -> None:
        part = -(-steps // LOOKS)
        if watched is not None and phase == last and step % part == 0 and step < steps:
            watched(step // part, look().mean())

    Trainer(fused, {"healthy": healthy}, None, folder, fabric, judging.seed, report).run()
    with torch.no_grad() if not method.needs_grad else torch.enable_grad():
        found = look()
    shutil.rmtree(folder, ignore_errors=True)
    return Outcome(**{**vars(found), "seconds": round(time.monotonic() - begun, 3)})
