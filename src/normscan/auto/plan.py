"""Which candidates are trained, in which order, how long: from the fingerprint, the weights, the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from normscan.auto.batches import resized
from normscan.auto.fingerprint import Fingerprint, fingerprint
from normscan.auto.kinds import JUDGES
from normscan.cohort import CohortRow
from normscan.errors import ArgumentError, NormscanError, nearest
from normscan.methods.base import Batch, Batches, Method
from normscan.preprocess import Preprocess
from normscan.progress import Progress
from normscan.registry import Card, card, load_all
from normscan.rng import Rng, derive_seed, seeded

# One of each mechanism, the presets that run on two cores; the first that can be built is taken.
# ``lite0`` has its weights from an installed package.
USUAL = (
    "mean_image", "image_statistics", "padim", "patchcore", "anomaly_dino", "ae_dense", "dae",
    "simplenet", "fae",
)  # fmt: skip
PRESETS = ("lite0", "laptop")
PROBED = 4  # images of a trial run
SHARE = 0.25  # least share of its steps that a candidate is trained for
FEW = 24  # subjects, below which every third one judges rather than every fourth
SPARED = 0.8  # share of the time that candidates get; reading and deciding take the rest


@dataclass(frozen=True)
class Cost:
    """Seconds of a candidate.

    Attributes:
        step: of one training step, over all players.
        steps: of training.
        fit: of the closed form, for an image.
        look: for an image.
    """

    step: float
    steps: int
    fit: float
    look: float

    def fixed(self, images: int, judged: int) -> float:
        """Seconds of one fit, beside training: the closed form twice and all maps that judge."""
        return 2 * self.fit * images + self.look * judged

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return self.step * self.steps


@dataclass(frozen=True)
class Budget:
    """What a plan has to do with.

    Attributes:
        minutes: for everything.
        fits: how often each candidate is fitted.
        images: that one fit learns from.
        judged: images that each candidate maps in a fit.
    """

    minutes: float
    fits: int
    images: int
    judged: int

    def seconds(self, cost: Cost, effort: float = 1.0) -> float:
        """Seconds of a candidate, over all fits."""
        return self.fits * (cost.fixed(self.images, self.judged) + effort * cost.training)


def plan(
    arguments: dict[str, Any],
    preprocess: Preprocess,
    rows: Sequence[CohortRow],
    fits: int,
    seed: int,
    bar: Progress,
) -> dict[str, Any]:
    """Look at the healthy scans and settle the candidates.

    Args:
        arguments: of the method ``auto``.
        preprocess: of the detector.
        rows: healthy scans that train or set a threshold.
        fits: how often the detector is fitted: once, or once without each fold.
        seed: of the detector.
        bar: shows progress.

    Returns:
        JSON values: ``fingerprint``, ``arguments`` that are settled, ``candidates`` with their
        seconds, ``passed_over`` with the reasons, and ``reasons`` for the rest.

    Raises:
        CohortError: see ``fingerprint``.
        ArgumentError: no candidate fits; says why.
    """
    found = fingerprint(rows, preprocess)
    dims = arguments["dims"] or 2
    names, passed = named(arguments, dims)
    images = max(1, round(len(rows) * (1 if fits == 1 else 1 - 1 / fits)))
    images *= found.depth if dims == 2 else 1
    budget = Budget(arguments["minutes"], fits, images, arguments["planted"] + JUDGES)
    costs: dict[str, Cost] = {}
    channels = 1 if len(found.channels) == 1 else len(found.channels)
    for name in bar.track(names, "time candidates", len(names)):
        full, cost, why = tried(name, dims, channels, arguments["size"], seed, images)
        if cost is None:
            passed[name] = why
        else:
            costs[full] = cost
    if not costs:
        told = "; ".join(f"{name}: {why}" for name, why in passed.items())
        raise ArgumentError(
            f"no candidate fits this cohort ({told}). Weights would make more fit: pip install "
            "normscan[weights]. Or name others: --candidates [padim:laptop]."
        )
    kept, effort, dear = within(costs, budget)
    passed |= dear
    effort = arguments["effort"] or effort
    every = arguments["every"] or (3 if found.subjects < FEW else 4)
    seconds = {n: budget.seconds(costs[n], effort) for n in kept}
    return {
        "fingerprint": found.to_dict(),
        "arguments": {"candidates": kept, "effort": effort, "every": every, "dims": dims},
        "candidates": [{"name": n, "seconds": round(s, 1)} for n, s in seconds.items()],
        "passed_over": passed,
        "reasons": _reasons(found, budget, seconds, effort, every),
    }


def named(arguments: dict[str, Any], dims: int) -> tuple[list[str], dict[str, str]]:
    """Return the candidates to try, and those that are not tried with the reasons."""
    asked = tuple(arguments["candidates"])
    skipped, passed, names = set(arguments["skip"]), dict[str, str](), []
    for wrong in skipped - set(load_all()):
        raise ArgumentError(f"skip: there is no method '{wrong}'.{nearest(wrong, load_all())}")
    for name in asked or USUAL:
        id = name.partition(":")[0]
        entry = card(id)
        if id in skipped:
            passed[name] = "left out as asked (skip)"
        elif dims not in entry.dims:
            passed[name] = f"it works on {' or '.join(map(str, entry.dims))} axes, not {dims}"
        elif entry.regime != "healthy" or id == "auto":
            passed[name] = f"it doesn't learn from healthy scans alone ({entry.regime})"
        else:
            names.append(name)
    return names, passed


def presets_of(name: str) -> list[str]:
    """Return the presets that a candidate may be built with, the first that can be is taken."""
    id, _, preset = name.partition(":")
    return [preset] if preset else [p for p in PRESETS if p in card(id).presets]


def tried(
    name: str, dims: int, channels: int, size: int, seed: int, images: int
) -> tuple[str, Cost | None, str]:
    """Build a candidate and time it on made-up images, for as many as it will learn from.

    Returns:
        Its name with the preset, and its cost, or None and why it can't take part.
    """
    why = "it has no preset for this"
    for preset in presets_of(name):
        entry = card(name.partition(":")[0])
        values = entry.arguments(preset, dims=dims)
        values["channels"] = channels
        try:
            with seeded(derive_seed(seed, "trial")):
                method: Method = entry.create(**values)
                why = unfit(method)
                if not why:
                    cost = timed(method, dims, channels, side_of(entry, preset, size), images)
                    return f"{entry.id}:{preset}", cost, ""
        except (NormscanError, RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())
    return name, None, why


def side_of(entry: Card, preset: str, size: int) -> int:
    """Pixels along each axis of a candidate's input: its preset's, at most the working grid's."""
    return min(size, int(entry.arguments(preset)["size"]))


def unfit(method: Method) -> str:
    """Return why a method can't be a member, or nothing."""
    if method.context:
        return "it looks at neighbouring slices"
    if method.uses:
        return f"it uses what stands beside a scan ({', '.join(method.uses)})"
    parts = {p for phase in method.phases() for p in phase.part.split("+")} - {"healthy"}
    return f"it learns from {' and '.join(sorted(parts))} scans, too" if parts else ""


def timed(method: Method, dims: int, channels: int, side: int, images: int) -> Cost:
    """Time a method on made-up images: a training step, the closed form, a map."""
    rng = Rng(0)
    image = rng.uniform((PROBED, channels, *[side] * dims))
    inside = torch.ones(PROBED, 1, *[side] * dims, dtype=torch.bool)
    zeros = torch.zeros(PROBED)
    numbers = torch.arange(PROBED)
    batch = Batch(image, inside, rng, zeros, label=zeros.long(), index=numbers, subject=numbers)
    batch = resized(batch, side)
    step, steps = 0.0, 0
    for phase in method.phases():
        for player in phase.players:
            for turn in range(2):  # the first one warms up
                begun = time.perf_counter()
                terms: dict[str, Tensor] = method.train().loss(batch, phase.name, player.name)
                total = sum(terms.values())
                if isinstance(total, Tensor) and total.requires_grad:
                    total.backward()  # type: ignore[no-untyped-call]
                if turn:
                    each = (time.perf_counter() - begun) / PROBED * phase.batch_size
                    step += each * player.turns * phase.total_steps(images)
        steps += phase.total_steps(images)
    step /= max(1, steps)
    method.eval()
    fit = _seconds(lambda: method.fit(Batches(lambda: iter([batch])))) if method.fits else 0.0
    single = replace(batch, rng=Rng([0] * PROBED))
    with torch.set_grad_enabled(method.needs_grad):
        look = min(_seconds(lambda: method.maps(single)) for _ in range(2))
    return Cost(step, steps, fit / PROBED, look / PROBED)


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def within(costs: dict[str, Cost], budget: Budget) -> tuple[list[str], float, dict[str, str]]:
    """Take the cheapest candidates that fit the time; training may be cut to ``SHARE`` for one more.

    Returns:
        Candidates in their order, the share of their steps in quarters, and why others are not
        among them. The cheapest is always taken.
    """
    order = sorted(costs, key=lambda name: budget.seconds(costs[name]))
    left = SPARED * 60 * budget.minutes
    kept, passed = list[str](), dict[str, str]()
    for name in order:
        least = sum(budget.seconds(costs[n], SHARE) for n in [*kept, name])
        if kept and least > left:
            needs = budget.seconds(costs[name], SHARE) / 60
            passed[name] = (
                f"it takes {needs:.1f} minutes at least, more than what is left of "
                f"{budget.minutes:g}"
            )
        else:
            kept.append(name)
    fixed = sum(budget.seconds(costs[n], 0) for n in kept)
    training = sum(budget.seconds(costs[n]) for n in kept) - fixed
    effort = 1.0 if not training else min(1.0, max(SHARE, (left - fixed) / training))
    # In quarters, and in the order that they came in: a second run should end as the first.
    return [name for name in costs if name in kept], int(effort / SHARE) * SHARE, passed


def _reasons(
    found: Fingerprint, budget: Budget, seconds: dict[str, float], effort: float, every: int
) -> dict[str, str]:
    planned = sum(seconds.values()) / 60
    fits = "one fit" if budget.fits == 1 else f"{budget.fits} fits"
    told = f"about {planned:.1f} of {budget.minutes:g} minutes for {fits}"
    if planned > budget.minutes:
        told = (
            f"{budget.minutes:g} minutes are too few for any candidate: the cheapest, "
            f"{next(iter(seconds))}, is trained all the same, in about {planned:.1f}"
        )
    fitted = found.subjects * (1 - 1 / budget.fits if budget.fits > 1 else 1)
    judges = round(fitted / every)
    trust = "little" if judges < 6 else "something" if judges < 20 else "much"
    return {
        "time": told,
        "effort": f"each is trained for {effort:.0%} of its steps",
        "every": f"one of {every} subjects judges, about {judges}, which tells {trust}; weights are "
        "drawn to equal ones by as much as their differences are chance",
        "aligned": f"the mean image explains {found.explained:.0%} of a scan",
    }
