"""Toy methods of the regimes that no product method needs yet, registered for the time of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from normscan import registry
from normscan.methods.base import Batch, Maps, Method, Phase, Player, Use, adam
from normscan.registry import Card, register


class Toy(Method):
    """Trains all its parameters in one phase of ``steps``; subclasses say what the loss is."""

    part = "healthy"

    def __init__(self, steps: int = 30, batch_size: int = 8, lr: float = 0.05) -> None:
        super().__init__()
        self.steps, self.batch_size, self.lr = steps, batch_size, lr

    def phases(self) -> list[Phase]:
        player = Player("toy", [self], adam(self.lr))
        return [Phase("toy", [player], self.steps, batch_size=self.batch_size, part=self.part)]


class Between(Toy):
    """Restores a slice as a weighted mean of its neighbours."""

    def __init__(self, context: int, steps: int) -> None:
        super().__init__(steps)
        self.context = context
        self.weights = nn.Parameter(torch.zeros(2 * context))

    def restored(self, batch: Batch) -> torch.Tensor:
        assert batch.context is not None
        middle = self.context
        around = torch.cat([batch.context[:, :, :middle], batch.context[:, :, middle + 1 :]], 2)
        return torch.einsum("bcnxy,n->bcxy", around, self.weights)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, torch.Tensor]:
        return {"l2": (batch.image - self.restored(batch)).square().mean()}

    def maps(self, batch: Batch) -> Maps:
        restored = self.restored(batch)
        return Maps((batch.image - restored).abs().mean(1, keepdim=True), None, restored)


def between(
    dims: int = 2, channels: int = 1, size: int = 24, context: int = 2, steps: int = 30
) -> Method:
    """Restore a slice from its neighbours.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        context: slices on each side.
        steps: of training.
    """
    return Between(context, steps)


class Translation(Toy):
    """Foretells the further scans as a linear mixture of the channels; says where they differ."""

    def __init__(self, channels: int, targets: int, steps: int, prediction: str) -> None:
        super().__init__(steps)
        self.uses = {"target": Use(prediction=prediction)}
        self.mixture = nn.Linear(channels, targets)

    def foretold(self, batch: Batch) -> torch.Tensor:
        return self.mixture(batch.image.movedim(1, -1)).movedim(-1, 1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, torch.Tensor]:
        assert batch.target is not None
        return {"l2": (self.foretold(batch) - batch.target).square().mean()}

    def maps(self, batch: Batch) -> Maps:
        foretold = self.foretold(batch)
        partner = foretold.mean(1, keepdim=True) if batch.target is None else batch.target
        return Maps((foretold - partner).abs().mean(1, keepdim=True))


def translation(
    dims: int = 2,
    channels: int = 1,
    size: int = 24,
    targets: int = 1,
    steps: int = 150,
    prediction: Literal["needed", "welcome"] = "needed",
) -> Method:
    """Foretell one modality from another.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        targets: channels of the targets; the cohort's.
        steps: of training.
        prediction: whether a scan must have a partner.
    """
    return Translation(channels, targets, steps, prediction)


class Classes(Toy):
    """Tells healthy from anomalous scans by their largest responses to learnt filters."""

    part = "healthy+labelled"

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__(steps, batch_size=12, lr=0.01)
        self.network = nn.Sequential(
            nn.Conv2d(channels, 8, 5), nn.ReLU(), nn.Conv2d(8, 8, 5), nn.ReLU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 1),
        )  # fmt: skip

    def phases(self) -> list[Phase]:
        return [replace(phase, balanced=True) for phase in super().phases()]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, torch.Tensor]:
        assert batch.label is not None and batch.lesion is None
        told = self.network(batch.image)[:, 0]
        return {"bce": F.binary_cross_entropy_with_logits(told, batch.label.float())}

    def maps(self, batch: Batch) -> Maps:
        return Maps(score=self.network(batch.image)[:, 0])


def classes(dims: int = 2, channels: int = 1, size: int = 24, steps: int = 150) -> Method:
    """Tell anomalous scans from healthy ones by their labels.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        steps: of training.
    """
    return Classes(channels, steps)


class Nearest(Method):
    """The distance to the nearest of a few references, place by place; they are its buffer."""

    bank: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0))

    def fit(self, batches: Iterable[Batch]) -> None:
        self.bank = torch.cat([batch.image for batch in batches])

    def maps(self, batch: Batch) -> Maps:
        away = (batch.image[:, None] - self.bank[None]).abs().mean(2, keepdim=True)
        return Maps(away.amin(1))


def nearest(dims: int = 2, channels: int = 1, size: int = 24, shots: int = 4) -> Method:
    """Compare with a few references.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        shots: healthy references.
    """
    return Nearest()


class Guess(Method):
    """What lies far from the grey that is said to be healthy."""

    def __init__(self, states: Mapping[str, float], state: str) -> None:
        super().__init__()
        self.level = states[state]

    def maps(self, batch: Batch) -> Maps:
        return Maps((batch.image - self.level).abs().mean(1, keepdim=True))


def guess(dims: int = 2, channels: int = 1, size: int = 24, state: str = "dark") -> Method:
    """Compare with a grey that is known beforehand.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        state: what healthy looks like: dark or bright.
    """
    return Guess({"dark": 0.35, "bright": 0.75}, state)


class Exposed(Toy):
    """Tells healthy scans from those of another domain, and takes what is like these for ill."""

    part = "healthy+auxiliary"

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__(steps, batch_size=8, lr=0.05)
        self.network = nn.Sequential(
            nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1)
        )

    def phases(self) -> list[Phase]:
        return [replace(phase, balanced=True) for phase in super().phases()]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, torch.Tensor]:
        assert batch.part is not None
        told = self.network(batch.image)
        truth = batch.part.float()[:, None, None, None].expand_as(told)
        return {"bce": F.binary_cross_entropy_with_logits(told, truth, batch.foreground.float())}

    def maps(self, batch: Batch) -> Maps:
        return Maps(self.network(batch.image).sigmoid())


def exposed(dims: int = 2, channels: int = 1, size: int = 24, steps: int = 40) -> Method:
    """Learn from a second domain what healthy scans aren't.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        steps: of training.
    """
    return Exposed(channels, steps)


class Anatomy(Method):
    """The mean grey of each structure; at prediction a structure that is not given is guessed."""

    means: torch.Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.uses = {"structures": Use(("healthy",), prediction="welcome")}
        self.register_buffer("means", torch.zeros(classes))

    def fit(self, batches: Iterable[Batch]) -> None:
        greys, labels = [], []
        for batch in batches:
            assert batch.structures is not None
            greys.append(batch.image[:, 0].flatten())
            labels.append(batch.structures.flatten())
        grey, label = torch.cat(greys), torch.cat(labels)
        self.means = torch.stack([grey[label == k].mean() for k in range(len(self.means))])

    def maps(self, batch: Batch) -> Maps:
        away = (batch.image[:, :1] - self.means.view(-1, *[1] * (batch.image.ndim - 2))).abs()
        if batch.structures is None:
            return Maps(away.amin(1, keepdim=True))
        return Maps(away.gather(1, batch.structures.long()))


def anatomy(dims: int = 2, channels: int = 1, size: int = 24, classes: int = 3) -> Method:
    """Learn the grey of each structure.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        classes: structures, with the background.
    """
    return Anatomy(classes)


class Segmenter(Toy):
    """Learns structures from another cohort; what it can't name is anomalous."""

    part = "auxiliary"

    def __init__(self, channels: int, classes: int, steps: int) -> None:
        super().__init__(steps, lr=0.1)
        self.uses = {"structures": Use(("auxiliary",))}
        self.network = nn.Sequential(nn.Conv2d(channels, 8, 1), nn.ReLU(), nn.Conv2d(8, classes, 1))

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, torch.Tensor]:
        assert batch.structures is not None
        return {"ce": F.cross_entropy(self.network(batch.image), batch.structures[:, 0].long())}

    def maps(self, batch: Batch) -> Maps:
        assert batch.structures is None
        return Maps(1 - self.network(batch.image).softmax(1).amax(1, keepdim=True))


def segmenter(
    dims: int = 2, channels: int = 1, size: int = 24, classes: int = 3, steps: int = 60
) -> Method:
    """Learn structures from another cohort.

    Args:
        dims: axes.
        channels: of the scans.
        size: pixels.
        classes: structures, with the background.
        steps: of training.
    """
    return Segmenter(channels, classes, steps)


TOYS = {
    "toy_segmenter": (segmenter, {"regime": "healthy"}),
    "toy_anatomy": (anatomy, {"regime": "healthy", "dims": (2, 3)}),
    "toy_exposed": (exposed, {"regime": "image-labels"}),
    "toy_guess": (guess, {"regime": "zero-shot", "dims": (2, 3)}),
    "toy_nearest": (nearest, {"regime": "few-shot", "dims": (2, 3)}),
    "toy_classes": (classes, {"regime": "image-labels"}),
    "toy_translation": (translation, {"regime": "paired-modality", "dims": (2, 3)}),
    "toy_between": (between, {"regime": "healthy", "dims": (2, 3)}),
}


def _cards() -> dict[str, Card]:
    """The toys' cards, which the registry has for the time of a test alone."""
    for id, (build, options) in TOYS.items():
        register(id, paper="toy", presets={"laptop": {}}, **options)(build)
    return {id: registry._CARDS.pop(id) for id in TOYS}


TOY_CARDS = _cards()


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Register the toys, and forget them again."""
    registry._CARDS.update(TOY_CARDS)
    try:
        yield
    finally:
        for id in TOYS:
            registry._CARDS.pop(id, None)
