"""Students that copy a frozen teacher on healthy images, and so fail on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.features.common import (
    LAPTOP,
    LITE0_STAGES,
    PICTURE,
    RESNET18,
    SMOOTH,
    STAGES,
    TEST_RESNET,
    TINY,
    Tapped,
    Trained,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.backbones import Backbone
from normscan.networks.cloner import Cloner
from normscan.objectives.cosine import point_distance
from normscan.objectives.gradients import input_gradient
from normscan.registry import register
from normscan.signatures import Options


class PyramidMatching(Method):
    """A student of the teacher's shape that learns the directions of its feature vectors."""

    def __init__(self, teacher: Backbone, student: Backbone, phase: Phase) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def distances(self, image: Tensor) -> list[Tensor]:
        """Half the squared distance of the normalised vectors, (B, 1, h, w) by level."""
        # That is 1 - cos.
        taught, learnt = self.teacher(image).values(), self.student(image).values()
        return [point_distance(t, s) for t, s in zip(taught, learnt, strict=True)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        taps = self.teacher.taps
        distances = self.distances(batch.image)
        return {tap: d.mean() for tap, d in zip(taps, distances, strict=True)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        product, *others = self.distances(batch.image)
        size = product.shape[2:]
        for d in others:
            product = product * F.interpolate(d, size, mode="bilinear", align_corners=False)
        return Maps(map=product)


class Descent(TypedDict):
    """The training of ``stfpm``."""

    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    epochs: int
    steps: int | None


class Descended(Tapped, Descent):
    """The arguments of ``tapped`` and the training of ``stfpm``."""


DESCENT = Options(
    get_type_hints(Descent),
    {
        "lr": 0.4,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "epochs": 100,
        "steps": None,
    },
    {
        "lr": "learning rate of stochastic gradient descent.",
        "momentum": "of the descent.",
        "weight_decay": "of the descent.",
        "batch_size": "images in an update.",
        "epochs": "passes over the training images.",
        "steps": "number of updates instead of ``epochs``.",
    },
)


@register(
    "stfpm",
    paper="Wang 2021",
    presets={
        # Twice the article's loss, which is what twice the rate and half the decay do.
        "code": {"lr": 0.8, "weight_decay": 5e-5},
        "laptop": {**LAPTOP, "batch_size": 8, "steps": 100},
        "lite0": lite0({**LAPTOP, "batch_size": 8, "steps": 100}, LITE0_STAGES[1:]),
    },
    reduction="max",
    preprocess=PICTURE,
    tiny={**TINY, "backbone": TEST_RESNET, "batch_size": 8, "steps": 40},
    options=tapped(backbone=RESNET18) | DESCENT,
)
def stfpm(dims: int = 2, channels: int = 1, **options: Unpack[Descended]) -> Method:
    """Student-teacher feature pyramid matching (STFPM).

    Wang et al., BMVC 2021: a network of the teacher's shape, ResNet-18, with random weights, learns
    the direction of the teacher's feature vector at each point of three stages: half the squared
    distance of the normalised vectors, meaned over points and summed over stages. Stochastic gradient
    descent, 0.4, momentum 0.9, decay 1e-4, batches of 32, 100 epochs; the weights with the least loss
    on held-out healthy images are kept. The map is the product of the stages' distances on the finest
    stage's grid; its largest value is the image's score. Pictures have 256 pixels. The release leaves
    the half away (``code``).

    Departures:
        half: a distance is 1 - cos, half the article's squared distance; the release leaves the half
            away, so its loss is twice and its map eight times ours: ``code`` doubles the rate and
            halves the decay.
        validation: by the loss on the healthy validation scans; the release takes the mean of the
            map on a fifth of the training images.

    Args:
        backbone: timm name with the tag of the teacher's weights; the student has its shape.
        taps: stages that are compared, the finest first.
    """
    teacher = backbone_of(options, channels)
    student = Backbone(
        options["backbone"], options["taps"], "random", channels=channels, trainable=True,
        batch_norm="train",
    )  # fmt: skip
    lr, momentum, decay = options["lr"], options["momentum"], options["weight_decay"]
    player = Player(
        "student",
        [student],
        lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, weight_decay=decay),
    )
    steps = options["steps"]
    training = Phase(
        "distil",
        [player],
        steps,
        options["epochs"],
        options["batch_size"],
        validate_every=max(1, steps // 10) if steps else "epoch",
        keep="best",
    )
    return PyramidMatching(teacher, student, training)


@dataclass(frozen=True)
class Look:
    """How a cloner's discrepancy is looked at; see ``mkd``."""

    mse: float = 0.5
    scored: int = 3
    samples: int = 0
    noise: float = 0.15


class Cloning(Method):
    """A small network that learns values and directions of a large one's feature maps."""

    needs_grad = True

    def __init__(
        self, source: Backbone, pooled: bool, cloner: Cloner, look: Look, training: Schedule
    ) -> None:
        super().__init__()
        self.source, self.pooled, self.cloner = source, pooled, cloner
        self.look, self._training = look, training

    def phases(self) -> list[Phase]:
        return [phase(self.cloner, self._training, "distil")]

    def targets(self, image: Tensor) -> list[Tensor]:
        """The source's maps; VGG's, which timm taps before its pools, behind them."""
        features = self.source(image).values()
        return [F.max_pool2d(f, 2) if self.pooled else f for f in features]

    def terms(self, image: Tensor, last: int = 0) -> tuple[Tensor, Tensor]:
        """1 - cos and weighted squared error of each sample, (B,), summed over the last levels."""
        cosine = error = image.new_zeros(len(image))
        pairs = list(zip(self.targets(image), self.cloner(image), strict=True))
        for a, b in pairs[-last:]:
            cosine = cosine + 1 - F.cosine_similarity(a.flatten(1), b.flatten(1))
            error = error + self.look.mse * (a - b).square().flatten(1).mean(1)
        return cosine, error

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        cosine, error = self.terms(batch.image)
        return {"cosine": cosine.mean(), "error": error.mean()}

    def gradient(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The discrepancy (B,) of the scored levels and its gradient, of the image's shape."""

        def discrepancy(x: Tensor) -> Tensor:
            cosine, error = self.terms(x, self.look.scored)
            return cosine + error

        return input_gradient(discrepancy, image)

    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        score, slope = self.gradient(x)
        samples = self.look.samples
        if samples:
            spread = self.look.noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
            spread = spread.reshape(-1, 1, 1, 1)
            slope = torch.zeros_like(x)
            for _ in range(samples):
                noisy = x + spread * batch.rng.normal(x.shape).to(x)
                slope = slope + self.gradient(noisy)[1] / samples
        return Maps(map=slope.abs().sum(1, keepdim=True), score=score)


@register(
    "mkd",
    paper="Salehi 2021",
    presets={
        "laptop": {**LAPTOP, "taps": STAGES, "scored": 2, "batch_size": 8, "steps": 100},
    },
    postprocess=SMOOTH,
    reduction="max",
    preprocess=PICTURE,
    tiny={**TINY, "scored": 2, "batch_size": 8, "steps": 60, "postprocess": ("smooth=2",)},
    options=tapped(
        size=128,
        backbone="vgg16.tv_in1k",
        taps=("features.8", "features.15", "features.22", "features.29"),
    )
    | schedule(lr=1e-3, batch_size=64, epochs=601),
)
def mkd(
    dims: int = 2,
    channels: int = 1,
    width: int = 16,
    mse: float = 0.5,
    scored: int = 3,
    samples: int = 0,
    noise: float = 0.15,
    **options: Unpack[Trained],
) -> Method:
    """Multiresolution knowledge distillation into a small cloner (MKD).

    Salehi et al., CVPR 2021: a narrow VGG learns the maps of a frozen VGG-16 behind its max-pools 2 to
    5: 1 - cosine of whole maps and the mean squared error. An image's score is this loss on the last
    three levels; the map is the gradient of that score with respect to the image, absolute values
    summed over channels, smoothed. The defaults are those of MVTec, 128 pixels; for the small pictures
    of CIFAR-10 the release has ``mse=0.01`` and ``epochs=201``. Both networks see values in 0..1
    without ImageNet's statistics, as in its loaders of MVTec and of retinas.

    Departures:
        map: no morphological opening, no guided backpropagation, and no cut at each image's 99th
            percentile with its extremes brought to 0..1, which takes away what tells images apart.
        other backbones: one without pools behind its stages, such as a ResNet, is tapped as it is,
            and the cloner follows its channels and strides.

    Args:
        size: pixels along each axis, a multiple of the stride of the last level.
        taps: stages that are compared, the finest first, each at half the grid of the one before;
            those of a VGG are followed by its max-pool.
        width: channels inside the cloner.
        mse: weight of the squared error beside the cosine.
        scored: how many levels, from the last, the score and the map look at.
        samples: noisy copies whose gradients are averaged (SmoothGrad); 0 for the plain gradient.
        noise: deviation of that noise, as a share of the image's range.
    """
    source = backbone_of(options, channels, scaling="none")
    pooled = options["backbone"].startswith("vgg")
    strides = [s * 2 if pooled else s for s in source.strides]
    cloner = Cloner(channels, source.channels, strides, width)
    return Cloning(source, pooled, cloner, Look(mse, scored, samples, noise), options)
