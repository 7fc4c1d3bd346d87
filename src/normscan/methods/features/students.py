"""Students that copy a frozen teacher on healthy images, and so fail on others."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.backbones import Backbone
from normscan.networks.cloner import Cloner
from normscan.objectives.cosine import point_distance
from normscan.registry import register


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


@register(
    "stfpm",
    paper="Wang 2021",
    presets={
        # Twice the article's loss, which is what twice the rate and half the decay do.
        "code": {"lr": 0.8, "weight_decay": 5e-5},
        "laptop": {"size": 128, "batch_size": 8, "steps": 100},
    },
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "test_resnet.r160_in1k", "weights": "random", "size": 64, "batch_size": 8,
        "taps": ("layer1", "layer2"), "steps": 40,
    },
)  # fmt: skip
def stfpm(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    backbone: str = "resnet18.tv_in1k",
    taps: tuple[str, ...] = ("layer1", "layer2", "layer3"),
    weights: str = "hub",
    lr: float = 0.4,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    batch_size: int = 32,
    epochs: int = 100,
    steps: int | None = None,
) -> Method:
    """Student-teacher feature pyramid matching (STFPM).

    A network of the teacher's shape, with random weights, learns the direction of the teacher's
    feature vector at each point of three stages: half the squared distance of the normalised
    vectors, meaned over points and summed over stages. The map is the product of the stages'
    distances on the finest stage's grid; its largest value is the image's score. Wang et al., BMVC
    2021. The weights with the least loss on the healthy validation scans are kept, as there on a
    fifth of the training images; the released code takes the mean of the map for it. That code also
    leaves the half away. Each scan's 99th percentile becomes 1, where the article takes the values
    of the file.

    Args:
        dims: spatial axes, 2.
        backbone: timm name with the tag of the teacher's weights; the student has its shape.
        taps: stages that are compared, the finest first.
        lr: learning rate of stochastic gradient descent.
        momentum: of the descent.
        weight_decay: of the descent.
        batch_size: images in an update.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
    """
    teacher = Backbone(backbone, taps, weights, channels=channels)
    student = Backbone(
        backbone, taps, "random", channels=channels, trainable=True, batch_norm="train"
    )
    player = Player(
        "student",
        [student],
        lambda p: torch.optim.SGD(p, lr=lr, momentum=momentum, weight_decay=weight_decay),
    )
    training = Phase(
        "distil",
        [player],
        steps,
        epochs,
        batch_size,
        validate_every=max(1, steps // 10) if steps else "epoch",
        keep="best",
    )
    return PyramidMatching(teacher, student, training)


class Cloning(Method):
    """A small network that learns values and directions of a large one's feature maps."""

    needs_grad = True

    def __init__(
        self, source: Backbone, pooled: bool, inputs: int, width: int, mse: float, scored: int,
        samples: int, noise: float, training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.source, self.pooled = source, pooled
        strides = [s * 2 if pooled else s for s in source.strides]
        self.cloner = Cloner(inputs, source.channels, strides, width)
        self.mse, self.scored, self.samples, self.noise = mse, scored, samples, noise
        self._training = training

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
            error = error + self.mse * (a - b).square().flatten(1).mean(1)
        return cosine, error

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        cosine, error = self.terms(batch.image)
        return {"cosine": cosine.mean(), "error": error.mean()}

    def gradient(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The discrepancy (B,) of the scored levels and its gradient, of the image's shape."""
        x = image.detach().requires_grad_()
        cosine, error = self.terms(x, self.scored)
        discrepancy = cosine + error
        (slope,) = torch.autograd.grad(discrepancy.sum(), x)
        return discrepancy.detach(), slope

    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        score, slope = self.gradient(x)
        if self.samples:
            spread = self.noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1))
            spread = spread.reshape(-1, 1, 1, 1)
            slope = torch.zeros_like(x)
            for _ in range(self.samples):
                noisy = x + spread * batch.rng.normal(x.shape).to(x)
                slope = slope + self.gradient(noisy)[1] / self.samples
        return Maps(map=slope.abs().sum(1, keepdim=True), score=score)


@register(
    "mkd",
    paper="Salehi 2021",
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "taps": ("layer1", "layer2", "layer3"), "scored": 2,
            "size": 128, "batch_size": 8, "steps": 100,
        },
    },
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "taps": ("layer1", "layer2"),
        "scored": 2, "size": 64, "batch_size": 8, "steps": 60, "postprocess": ("smooth=2",),
    },
    options=schedule(lr=1e-3, batch_size=64, epochs=601),
)  # fmt: skip
def mkd(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    backbone: str = "vgg16.tv_in1k",
    taps: tuple[str, ...] = ("features.8", "features.15", "features.22", "features.29"),
    weights: str = "hub",
    width: int = 16,
    mse: float = 0.5,
    scored: int = 3,
    samples: int = 0,
    noise: float = 0.15,
    **training: Unpack[Schedule],
) -> Method:
    """Multiresolution knowledge distillation into a small cloner (MKD).

    A narrow VGG learns the maps of a frozen VGG-16 behind its max-pools 2 to 5: 1 - cosine of whole
    maps and the mean squared error. An image's score is this loss on the last three levels; the map
    is the gradient of that score with respect to the image, absolute values summed over channels,
    smoothed. Salehi et al., CVPR 2021. The defaults are those of MVTec; for the small pictures of
    CIFAR-10 the released code has ``mse=0.01`` and ``epochs=201``. Both networks see values in 0..1
    without ImageNet's statistics, as in its loaders of MVTec and of retinas. For another backbone,
    such as a ResNet, which has no pools behind its stages, the cloner follows its channels and
    strides.

    Departures:
        map: no morphological opening, no guided backpropagation, and no cut at each image's 99th
            percentile with its extremes brought to 0..1, which takes away what tells images apart.
        scaling: each scan's 99th percentile becomes 1; the release takes the file's range.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis, a multiple of the stride of the last level.
        backbone: timm name with the tag of its weights.
        taps: stages that are compared, the finest first, each at half the grid of the one before;
            those of a VGG are followed by its max-pool.
        width: channels inside the cloner.
        mse: weight of the squared error beside the cosine.
        scored: how many levels, from the last, the score and the map look at.
        samples: noisy copies whose gradients are averaged (SmoothGrad); 0 for the plain gradient.
        noise: deviation of that noise, as a share of the image's range.
    """
    source = Backbone(backbone, taps, weights, channels=channels, scaling="none")
    pooled = backbone.startswith("vgg")
    return Cloning(source, pooled, channels, width, mse, scored, samples, noise, training)
