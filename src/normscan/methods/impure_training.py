"""Training on scans of which some are not healthy: watch the errors, leave the outliers out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Batches, Method
from normscan.methods.wrapped import Wrapped
from normscan.rng import Rng, derive_seed

WARM_UP = 0.1


class Ledger:
    """Errors of the subjects in the current pass over the samples, and who is left out.

    Attributes:
        phase: number of the phase.
        calls: losses asked for in the phase.
        passes: complete ones in the phase.
        measuring: whether this pass is one whose errors count.
        seen: (samples,) which came in this pass.
        sums: (subjects,) sum of their samples' errors in this pass.
        counts: (subjects,) number of these.
        dropped: (subjects,) who is left out.
    """

    def __init__(self) -> None:
        self.phase, self.calls, self.passes, self.measuring = -1, 0, 0, False
        self.seen, self.sums = np.zeros(0, bool), np.zeros(0)
        self.counts, self.dropped = np.zeros(0, np.int64), np.zeros(0, bool)

    def make_room(self, samples: int, subjects: int) -> None:
        """Samples and subjects are known when they have come."""
        self.seen = np.pad(self.seen, (0, max(0, samples - len(self.seen))))
        more = (0, max(0, subjects - len(self.sums)))
        self.sums, self.counts = np.pad(self.sums, more), np.pad(self.counts, more)
        self.dropped = np.pad(self.dropped, more)

    def begin_pass(self, measuring: bool) -> None:
        """Forget the errors, not who is left out."""
        self.measuring = measuring
        self.seen[:], self.sums[:], self.counts[:] = False, 0, 0

    def begin_phase(self, phase: int, measuring: bool) -> None:
        """Errors of another phase say nothing of this one's."""
        self.phase, self.calls, self.passes = phase, 0, 0
        self.begin_pass(measuring)

    def note(self, subjects: np.ndarray, errors: np.ndarray) -> None:
        """Add errors of samples."""
        np.add.at(self.sums, subjects, errors)
        np.add.at(self.counts, subjects, 1)

    def choose(self, cut: float) -> None:
        """Leave out whose mean error lies beyond the third quartile by ``cut`` quartile ranges."""
        there = self.counts > 0
        if there.any():
            means = self.sums[there] / self.counts[there]
            low, high = np.quantile(means, (0.25, 0.75))
            self.dropped[:] = False
            self.dropped[there] = means > high + cut * (high - low)

    def pack(self) -> Tensor:
        """Everything as one row of integers, the errors with all their bits."""
        head = [self.phase, self.calls, self.passes, self.measuring, len(self.seen), len(self.sums)]
        parts = [head, self.seen, self.counts, self.dropped, self.sums.view(np.int64)]
        return torch.from_numpy(np.concatenate([np.asarray(p, np.int64) for p in parts]))

    @classmethod
    def unpack(cls, packed: Tensor) -> Ledger:
        """Undo ``pack``."""
        row, self = packed.cpu().numpy().astype(np.int64), cls()
        self.phase, self.calls, self.passes, measuring, n, m = map(int, row[:6])
        self.measuring = bool(measuring)
        if min(n, m) < 0 or len(row) != 6 + n + 3 * m:
            raise ValueError("the ledger of the training errors is damaged")
        seen, self.counts, dropped, sums = np.split(row[6:].copy(), [n, n + m, n + 2 * m])
        self.seen, self.dropped = seen.astype(bool), dropped.astype(bool)
        self.sums = sums.view(np.float64)
        return self


class ImpureTraining(Wrapped):
    """Leaves training samples out that are restored much worse than the others.

    Behrendt et al., ISBI 2022: scans with lesions among the healthy training scans stand out by
    their error while a network trains, and are removed. Labels are never looked at. The error of a
    sample is the mean of its map in the foreground (its score where there is no map), in evaluation
    mode; where maps need a closed form that comes last, the loss of the sample alone. It is averaged
    over a subject's samples. When a sample comes round again a pass is over, and every subject
    whose mean error lies beyond Q3 + cut (Q3 - Q1) is left out of the loss in the next one. Who was
    left out is still watched and may come back, so a healthy subject isn't lost to a bad pass and
    repeated cuts don't eat the cohort up. The rule, the warm-up and the way back are our choice: the
    article's text gives none that we know.

    Only phases that draw from ``healthy`` are watched. A method without phases is fitted once to
    measure, cut, and fitted again.

    Args:
        inner: any method.
        cut: quartile ranges above the third quartile.
        warm_up: share of a phase, 0 to 1, before errors count.

    Raises:
        ArgumentError: a value out of range; training with several processes.
    """

    def __init__(self, inner: Method, cut: float = 1.5, warm_up: float = WARM_UP) -> None:
        super().__init__(inner)
        if cut < 0 or not 0 <= warm_up < 1:
            raise ArgumentError(
                f"impure training: cut={cut:g} and warm_up={warm_up:g}; needed are a cut of 0 or "
                "more quartile ranges and a warm-up of 0 up to 1."
            )
        self.cut, self.warm_up = cut, warm_up
        self.ledger = Ledger()
        self._phases = {p.name: i for i, p in enumerate(inner.phases()) if p.part == "healthy"}

    # The ledger travels with the weights, as one tensor of whatever length.

    def get_extra_state(self) -> Tensor:
        return self.ledger.pack()

    def set_extra_state(self, state: Tensor) -> None:
        # At the end of a phase the best weights come back; what was learnt of the scans stays.
        if self.ledger.phase < 0:
            self.ledger = Ledger.unpack(state)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        # The validation loss takes no gradient, and its samples are others.
        told = batch.index is not None and batch.subject is not None
        if told and phase in self._phases and torch.is_grad_enabled():
            batch = self._watch(batch, phase, player)
        return self.inner.loss(batch, phase, player)

    def _watch(self, batch: Batch, phase: str, player: str) -> Batch:
        """Write the errors of a batch down and return what is left of it."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            raise ArgumentError(
                "impure training watches all samples in one process: use devices=1."
            )
        index, subject = _numbers(batch)
        ledger = self.ledger
        ledger.make_room(index.max() + 1, subject.max() + 1)
        if ledger.phase != self._phases[phase]:
            ledger.begin_phase(self._phases[phase], self.warm_up == 0)
        elif ledger.seen[index].any():
            ledger.passes += 1
            if ledger.measuring:
                ledger.choose(self.cut)
            ledger.begin_pass(self._progress(phase) >= self.warm_up)
        ledger.calls += 1
        ledger.seen[index] = True
        if not ledger.measuring:
            return batch
        errors = self._errors(batch, phase, player)
        ledger.note(subject, errors)
        return _left(batch, ledger.dropped[subject], errors)

    def _progress(self, name: str) -> float:
        """Share of a phase that is behind."""
        phase = next(p for p in self.inner.phases() if p.name == name)
        turns = sum(p.turns for p in phase.players)
        if phase.steps is not None:
            return self.ledger.calls / max(1, phase.steps * turns)
        return self.ledger.passes / max(1, (phase.epochs or 0) * turns)

    def _errors(self, batch: Batch, phase: str, player: str) -> np.ndarray:
        """Error of each sample, the same random numbers for it in every pass, (B,)."""
        seeds = [derive_seed("impure", int(i)) for i in _numbers(batch)[0]]
        modes = [(m, m.training) for m in self.inner.modules()]
        self.inner.eval()
        try:
            if self.inner.fits and self._phases:
                alone = [batch.taken([i]) for i in range(len(batch))]
                losses = [
                    self.inner.loss(replace(one, rng=Rng(seed)), phase, player).values()
                    for one, seed in zip(alone, seeds, strict=True)
                ]
                return np.array([sum(float(v.detach()) for v in terms) for terms in losses])
            with torch.set_grad_enabled(self.needs_grad):
                maps = self.inner.maps(replace(batch, rng=Rng(seeds)))
        finally:
            for module, mode in modes:
                module.training = mode
        if maps.map is None:
            assert maps.score is not None
            return maps.score.detach().double().cpu().numpy()
        values = maps.map.detach().double()
        weight = F.interpolate(batch.foreground.to(values), values.shape[2:])
        total = (values * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp_min(1)
        return total.cpu().numpy()

    def fit(self, batches: Iterable[Batch]) -> None:
        batches = list(batches) if isinstance(batches, Iterator) else batches
        if not self.inner.phases():
            self.inner.fit(batches)
            self.ledger.begin_phase(0, measuring=True)
            for batch in batches:
                if batch.subject is not None:
                    index, subject = _numbers(batch)
                    self.ledger.make_room(index.max() + 1, subject.max() + 1)
                    self.ledger.note(subject, self._errors(batch, "", ""))
            self.ledger.choose(self.cut)
        self.inner.fit(Batches(lambda: self._kept(batches)))

    def _kept(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches without the samples that are left out."""
        for batch in batches:
            if batch.subject is None:
                yield batch
                continue
            subject = _numbers(batch)[1]
            dropped = np.isin(subject, np.flatnonzero(self.ledger.dropped))
            if not dropped.all():
                yield batch.taken(np.flatnonzero(~dropped).tolist())

    def found(self, scans: Sequence[str], subjects: Sequence[int]) -> dict[str, Any]:
        dropped = set(np.flatnonzero(self.ledger.dropped).tolist())
        names = [name for name, number in zip(scans, subjects, strict=True) if number in dropped]
        return {**self.inner.found(scans, subjects), "dropped": names}


def _numbers(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of samples and subjects."""
    assert batch.index is not None and batch.subject is not None
    return batch.index.cpu().numpy(), batch.subject.cpu().numpy()


def _left(batch: Batch, dropped: np.ndarray, errors: np.ndarray) -> Batch:
    """What is left of a batch: at least two samples, as batch normalisation needs."""
    order = np.lexsort((errors, dropped))
    n = max(int((~dropped).sum()), min(2, len(batch)))
    return batch if n == len(batch) else batch.taken(np.sort(order[:n]).tolist())
