"""Candidates that become one detector: trained, judged by planted anomalies, weighed and fused."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscan.auto.batches import aside, at_size, narrowed, resized, scaled, without
from normscan.auto.evidence import MOST, Evidence, Scores, Trial, weigh
from normscan.auto.kinds import JUDGES, KINDS, planted
from normscan.auto.member import Look, Member, levels
from normscan.methods.base import Batch, Batches, Maps, Method, Phase
from normscan.networks.backbones import Backbone
from normscan.registry import card
from normscan.rng import Rng, derive_seed
from normscan.scores.places import Places, Sums

FEWEST = 2  # subjects that judge, below which all members weigh the same
ALIGNED = 0.5  # share of the variance of a healthy image that the mean image explains
AT_ONCE = 16
UNKNOWN = -1.0  # where there is no figure; NaN would differ from itself


class Fused(Method):
    """Several methods as one: the weighted mean of their surprises.

    One of ``every`` subjects that it is fitted to trains no member. Their healthy images say what
    each member's maps and scores are like on scans that it didn't see, and anomalies planted into
    them say what it finds. No other scan takes part, so scans that set a threshold never choose.

    Args:
        members: candidates.
        every: one of so many subjects judges.
        effort: share of the steps of each phase that is trained.
        seed: of the planted anomalies.
        wanted: number of them, about.
    """

    areas: Tensor
    figures: Tensor
    apart: Tensor
    facts: Tensor

    def __init__(
        self, members: Iterable[Member], every: int, effort: float, seed: int, wanted: int
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.every, self.effort, self.seed, self.wanted = every, effort, seed, wanted
        self.needs_grad = any(m.method.needs_grad for m in self)
        count = len(self.members)
        # AUROC by kind; below 0 where there is none.
        self.register_buffer("areas", torch.full((count, len(KINDS)), UNKNOWN))
        # Mean AUROC, its error, and that of how far it is behind the best.
        self.register_buffer("figures", torch.full((count, 3), UNKNOWN))
        # By kind that counted: the members that the other kinds chose, together and the best of them.
        self.register_buffer("apart", torch.full((2, len(KINDS)), UNKNOWN))
        # Subjects and images that judged, planted ones, explained by the mean image.
        self.register_buffer("facts", torch.zeros(4, dtype=torch.float64))
        self._share()

    def __iter__(self) -> Iterator[Member]:
        for member in self.members:
            assert isinstance(member, Member)
            yield member

    # ---------------------------------------------------------------- training

    def phases(self) -> list[Phase]:
        return [
            replace(
                phase,
                name=f"{number}/{phase.name}",
                steps=_share(phase.steps, self.effort),
                epochs=_share(phase.epochs, self.effort),
                # The scans of a validation loss set the threshold, too.
                validate_every=0, keep="last", patience=None,
            )
            for number, member in enumerate(self)
            for phase in member.method.phases()
        ]  # fmt: skip

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        number, _, name = phase.partition("/")
        member = list(self)[int(number)]
        kept = ~aside(batch, self.every)
        if bool(kept.any()):
            return member.method.loss(resized(narrowed(batch, kept), member.side), name, player)
        # Where batches are tiny, one of judges alone happens. It teaches nothing.
        terms = member.method.loss(resized(batch, member.side), name, player)
        return {term: 0 * value for term, value in terms.items()}

    @property
    def fits(self) -> bool:
        return True

    def fit(self, batches: Iterable[Batch]) -> None:
        trial, tables, alone = self.evidence(batches)
        if alone or not len(trial.kinds):
            for member, table in zip(self, tables, strict=True):
                member.take(member.usual, table.healthy[member.usual], 1 / len(self.members))
            return
        found = weigh(trial, tables, self.seed)
        rows = zip(self, tables, found.chosen, found.weights.tolist(), strict=True)
        for member, table, name, weight in rows:
            member.take(name, table.healthy[name], weight)
        self._keep(found)
        self.facts[:3] = torch.tensor([trial.people, len(trial.subjects), len(trial.kinds)])

    def evidence(self, batches: Iterable[Batch]) -> tuple[Trial, list[Scores], bool]:
        """Fit the closed forms, and let every member score the judges and their planted twins.

        Returns:
            Whose images judged, the scores of each member, and whether the judges trained too, since
            there are fewer than ``FEWEST`` of them.
        """
        if not isinstance(batches, Batches):  # it is gone over several times
            batches = list(batches)
        judges, subjects = self._judges(batches)
        alone = len(set(subjects)) < FEWEST
        if alone:  # what trained must do
            judges, subjects = _some(batches, JUDGES)
        trials = [self._trial(member, batches, alone) for member in self]
        self.facts[3] = aligned = _explained(judges.image)
        twins = planted(judges.image, judges.foreground, self.seed, self.wanted)
        numbers = {s: i for i, s in enumerate(dict.fromkeys(subjects))}
        trial = Trial(
            np.array([numbers[s] for s in subjects]), twins.hosts, twins.kinds, len(KINDS)
        )
        tables = []
        for member, method in zip(self, trials, strict=True):
            healthy = self._looks(member, method, judges)
            lesioned = self._looks(member, method, _like(judges, twins.images, twins.hosts))
            tables.append(_learn(member, trial, healthy, lesioned, aligned >= ALIGNED))
        return trial, tables, alone

    def _keep(self, found: Evidence) -> None:
        for kept, values in (
            (self.areas, found.areas),
            (self.figures, np.stack([found.mean, found.error, found.behind], axis=1)),
            (self.apart, np.stack([found.together, found.single])),
        ):
            kept.copy_(torch.from_numpy(values).nan_to_num(UNKNOWN))

    def _judges(self, batches: Iterable[Batch]) -> tuple[Batch, list[int]]:
        def held() -> Iterator[Batch]:
            for batch in batches:
                if bool((kept := aside(batch, self.every)).any()):
                    yield narrowed(batch, kept)

        return _some(list(held()), JUDGES)

    def _trial(self, member: Member, batches: Iterable[Batch], alone: bool) -> Method:
        """Fit the closed form to all, and return one that didn't see the judges."""
        method = member.method
        if not method.fits:
            return method
        trial = method
        if not alone:
            trial = copy.deepcopy(method)
            trial.fit(at_size(without(batches, self.every), member.side))
            trial.eval()
        method.fit(at_size(batches, member.side))
        method.eval()
        return trial

    def _looks(self, member: Member, method: Method, batch: Batch) -> list[Look]:
        found = []
        for start in range(0, len(batch), AT_ONCE):
            places = torch.arange(start, min(start + AT_ONCE, len(batch)))
            kept = torch.zeros(len(batch), dtype=torch.bool)
            kept[places] = True
            seeds = [derive_seed(self.seed, "judge", int(i)) for i in places]
            part = replace(narrowed(batch, kept), rng=Rng(seeds))
            with torch.set_grad_enabled(method.needs_grad):
                found += member.looks(part, method)
        return found

    # -------------------------------------------------------------- prediction

    def maps(self, batch: Batch) -> Maps:
        size = batch.image.shape[-1]
        total: Tensor | float = 0.0
        score = torch.zeros(len(batch), dtype=torch.float64)
        for member in self:
            weight = float(member.weight)
            if not weight:
                continue
            surprises, scores = member.judge(member.looks(batch))
            values = torch.from_numpy(surprises.astype(np.float32))[:, None]
            total = total + weight * scaled(values, size)
            score += weight * torch.tensor(scores, dtype=torch.float64)
        assert isinstance(total, Tensor)
        # Less than healthy on average is no finding.
        anomaly = total.clamp_min(0).to(batch.image.device)
        return Maps(map=anomaly, score=score.to(batch.image.device))

    def learnt(self) -> dict[str, Any]:
        """Say what judged, what each candidate found, and what came of it, as JSON values."""
        people, images, lesions, explained = self.facts.tolist()
        names = [kind.name for kind in KINDS]
        taken = sorted((m for m in self if m.weight > 0), key=lambda m: -float(m.weight))
        shares = ", ".join(f"{m.name} {float(m.weight):.0%}" for m in taken)
        judged = f"{int(people)} subjects with {int(lesions)} planted anomalies chose"
        return {
            "said": f"{judged if people else 'nobody could judge:'} {shares}",
            "judged_by": {
                "subjects": int(people), "images": int(images), "planted": int(lesions),
                "explained_by_mean_image": round(explained, 4), "by_place": explained >= ALIGNED,
            },
            "members": [
                {
                    "name": member.name,
                    "weight": round(float(member.weight), 4),
                    "score": member.scores[chosen] if (chosen := int(member.chosen)) else "usual",
                    **dict(zip(("auroc", "error", "behind_error"), map(_number, row), strict=True)),
                    "by_kind": dict(zip(names, map(_number, areas), strict=True)),
                    "why": self._why(number),
                }
                for number, (member, row, areas) in enumerate(
                    zip(self, self.figures, self.areas, strict=True)
                )
            ],
            "kind_left_out": {
                name: {"together": _number(both), "best_single": _number(one)}
                for name, both, one in zip(names, *self.apart, strict=True)
            },
        }  # fmt: skip

    def _why(self, number: int) -> str:
        """Say why a candidate has its weight."""
        mean = float(self.figures[number, 0])
        if mean < 0:
            return "nobody judged: all weigh the same"
        weight, best = float(list(self)[number].weight), float(self.figures[:, 0].max())
        if weight:
            return "the best" if mean == best else f"{best - mean:.3f} behind the best"
        if sum(float(m.weight) > 0 for m in self) == MOST:
            return f"dropped: {best - mean:.3f} behind the best, and {MOST} find more"
        return "dropped: it finds next to nothing of what was planted"

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Load a state dict; what is the same in several members is run once from then on."""
        super().load_weights(state)
        self._share()

    def _share(self) -> None:
        """Let members with the same frozen backbone use one, which remembers its last features."""
        known: list[Backbone] = []
        for member in self:
            for name, part in list(member.method.named_modules()):
                if not isinstance(part, Backbone) or part.trainable:
                    continue
                same = next((k for k in known if _same(k, part)), None)
                if same is None:
                    known.append(part)
                else:
                    same.remembers = True
                    member.method.set_submodule(name, same)


def _same(a: Backbone, b: Backbone) -> bool:
    if a.taps != b.taps or a.inputs != b.inputs:
        return False
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)


def _share(count: int | None, share: float) -> int | None:
    return None if count is None else max(1, round(share * count))


def _number(value: Tensor) -> float | None:
    return None if value < 0 else round(float(value), 4)


def _some(batches: Iterable[Batch], most: int) -> tuple[Batch, list[int]]:
    """Return so many samples at most, evenly taken, as one batch, and their subjects."""
    held = list(batches)
    count = sum(map(len, held))
    chosen = set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())
    parts, start = [], 0
    for batch in held:
        kept = torch.tensor([start + i in chosen for i in range(len(batch))])
        start += len(batch)
        parts.append(narrowed(batch, kept))
    if not parts:
        empty = Batch(torch.zeros(0), torch.zeros(0), Rng(0), torch.zeros(0))
        return empty, []
    names = [k for k, v in vars(parts[0]).items() if isinstance(v, Tensor)]
    tensors: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in names}
    whole = replace(parts[0], **tensors, columns=[c for p in parts for c in p.columns])
    owners = range(len(whole)) if whole.subject is None else whole.subject.tolist()
    return whole, list(owners)


def _like(judges: Batch, images: Tensor, hosts: np.ndarray) -> Batch:
    """Return planted images as a batch, each with what stands beside its host."""
    rows = torch.from_numpy(hosts).to(judges.image.device)
    tensors: dict[str, Any] = {k: v[rows] for k, v in vars(judges).items() if isinstance(v, Tensor)}
    columns = [judges.columns[i] for i in hosts] if judges.columns else []
    return replace(judges, **{**tensors, "image": images}, columns=columns)


def _explained(images: Tensor) -> float:
    """Share of the variance of healthy images that the mean of the others explains."""
    n = len(images)
    if n < 3:
        return 0.0
    small = scaled(images.float(), min(32, images.shape[-1])).flatten(1).double()
    others = (small.sum(0) - small) / (n - 1)
    rest = (small - others).square().sum()
    whole = (small - small.mean(1, keepdim=True)).square().sum()
    return float((1 - rest / whole.clamp_min(1e-12)).clamp(-1, 1))


def _learn(
    member: Member,
    trial: Trial,
    healthy: Sequence[Look],
    lesioned: Sequence[Look],
    aligned: bool,
) -> Scores:
    """Let a member learn what healthy maps are like, and return its scores, by every name.

    An image is compared place by place with those of other subjects, as a new scan's is.
    """
    owners = trial.subjects
    sums = {s: Sums(healthy[0].anomaly.shape) for s in set(owners.tolist())}
    for owner, look in zip(owners.tolist(), healthy, strict=True):
        sums[owner].add(look.anomaly)
    whole = Sums(healthy[0].anomaly.shape)
    for one in sums.values():
        whole.n, whole.total, whole.squares = (
            whole.n + one.n, whole.total + one.total, whole.squares + one.squares
        )  # fmt: skip
    places: dict[int, Places] = {}
    if aligned and all(whole.n - one.n >= 2 for one in sums.values()):
        places = {owner: whole.less(one).places() for owner, one in sums.items()}
        found = whole.places()
        member.mean, member.deviation = (
            torch.from_numpy(a).to(member.mean.device) for a in (found.mean, found.deviation)
        )
        member.deviation = member.deviation.clamp_min(torch.finfo(torch.float32).tiny)
    else:
        mean, deviation = levels(healthy)
        member.mean, member.deviation = mean.to(member.mean), deviation.to(member.mean)
    names = [n for n in member.scores if places or "place" not in n]

    def scores(looks: Sequence[Look], whose: np.ndarray, name: str) -> np.ndarray:
        pairs = zip(looks, whose.tolist(), strict=True)
        return np.array([member.score(look, name, places.get(owner)) for look, owner in pairs])

    skipped = np.array([
        kind.group == "copied" and card(member.id).family == "synthesis" for kind in KINDS
    ])  # fmt: skip
    return Scores(
        {n: scores(healthy, owners, n) for n in names},
        {n: scores(lesioned, owners[trial.hosts], n) for n in names},
        skipped,
    )
