"""A flow between the levels of a pyramid, and the mean place to which it leads healthy images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import PICTURE, RESNET18, Tapped, backbone_of, tapped
from normscan.networks.backbones import IMAGENET_MEAN, IMAGENET_STD
from normscan.networks.pyramid_flow import (
    Over,
    PyramidFlow,
    composed,
    fourier_size,
    laplacian,
    pairs,
)
from normscan.registry import register

# The name of no network: pixels are spread over the channels instead.
SPREAD = "none"


class Spread(nn.Module):
    """Pixels on more channels by a fixed matrix with orthonormal columns.

    Args:
        inputs: channels of the image; one counts as three equal ones.
        channels: that they are spread over.
    """

    matrix: Tensor

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.inputs = 3 if inputs == 1 else inputs
        if channels < self.inputs:
            raise ArgumentError(f"{self.inputs} channels don't fit on width={channels}.")
        q, _ = torch.linalg.qr(torch.randn(channels, self.inputs))
        self.register_buffer("matrix", q)

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, self.inputs, -1, -1)
        places = [i % 3 for i in range(self.inputs)]
        mean, std = (
            x.new_tensor([v[i] for i in places]).reshape(1, -1, 1, 1)
            for v in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return torch.einsum("oi,bihw->bohw", self.matrix, (x - mean) / std)


class TemplateFlow(Method):
    """Images are compared with the mean of the healthy ones behind a flow; see ``pyramid_flow``."""

    seen: Tensor

    def __init__(
        self, encoder: nn.Module, flow: PyramidFlow, shape: tuple[int, int], levels: int,
        phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.flow, self.levels = encoder, flow, levels
        channels, side = shape
        for i in range(levels):
            template = torch.zeros(channels, side // 2**i, side // 2**i)
            self.register_buffer(f"template{i}", template)
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def led(self, image: Tensor) -> list[Tensor]:
        """Where the levels of the features' pyramid are led, (B, C, h, w), the finest first."""
        with torch.no_grad():
            features = self.encoder(image)
            if isinstance(features, dict):
                (features,) = features.values()
            pyramid = laplacian(features, self.levels)
        found: list[Tensor] = self.flow(pyramid)
        return found

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        a, b = pairs(len(batch))
        squares = [(level[a] - level[b]).square() for level in self.led(batch.image)]
        return {"difference": fourier_size(composed(squares).mean(1))}

    @property
    def template(self) -> list[Tensor]:
        """The mean healthy levels, (C, h, w), the finest first."""
        return [self.get_buffer(f"template{i}") for i in range(self.levels)]

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The template: where healthy images are led, on average."""
        number, sums = 0, [torch.zeros_like(t, dtype=torch.float64) for t in self.template]
        for batch in batches:
            number += len(batch)
            for total, level in zip(sums, self.led(batch.image), strict=True):
                total += level.double().sum(0)
        for template, total in zip(self.template, sums, strict=True):
            template.copy_(total / number)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        pairs = zip(self.led(batch.image), self.template, strict=True)
        differences = [(level - template).abs() for level, template in pairs]
        return Maps(map=composed(differences).mean(1, keepdim=True))


@register(
    "pyramid_flow",
    paper="Lei 2023",
    dims=(2,),
    presets={
        "laptop": {"size": 256, "kernel": 3, "stacks": 2, "steps": 200, "preprocess": {}},
    },
    reduction="max",
    preprocess=PICTURE,
    tiny={
        "backbone": SPREAD, "width": 8, "size": 32, "stacks": 1, "kernel": 3, "levels": 3,
        "batch_size": 4, "steps": 60, "lr": 2e-3, "preprocess": {},
    },
    options=tapped(size=1024, backbone=RESNET18, taps=("layer1",)),
)  # fmt: skip
def pyramid_flow(
    dims: int = 2,
    channels: int = 1,
    width: int = 16,
    levels: int = 4,
    stacks: int = 4,
    kernel: int = 7,
    over: Over = "channels",
    lr: float = 2e-4,
    batch_size: int = 2,
    epochs: int = 15,
    steps: int | None = None,
    **options: Unpack[Tapped],
) -> Method:
    """A flow that leads the pyramids of all healthy images to the same place (PyramidFlow).

    Lei et al., CVPR 2023: an image, or the first stage of a ResNet-18, becomes a Laplacian pyramid of
    4 levels. Four stacks of couplings scale and shift each level by what convolutions make of its
    neighbours; log scales sum to 0 and channels are mixed by matrices of determinant 1, so that
    volumes stay and nothing collapses. Training draws two images together: their squared difference
    behind the flow, put together to an image, mean of its Fourier transform's modulus (Adam 2e-4,
    betas 0.5 and 0.9, epsilon 1e-4, decay 1e-5, gradient of at most 1, 15 passes in pairs). The mean
    healthy pyramid behind the flow is the template; the map is the absolute difference from it, put
    together, the image score its maximum. Images have 1024 pixels with the ResNet and 256 without.
    The article's result without knowledge from elsewhere is ``backbone=none, size=256``; for some
    classes of picture it has 2 or 8 levels and ``over=pixels``.

    Departures:
        encoder: in evaluation mode; the release runs its batch norms on the two images of a batch
            while training, which overwrites the statistics that it tests with.
        weights: the last ones; the release keeps the best of its looks at the test set.
        augmentation: none; the release mirrors and turns pictures of textures.

    Args:
        size: pixels along each axis, a multiple of the stride times 2**(levels - 1).
        backbone: timm name with the tag of its weights, or ``none``: the pixels themselves, spread
            over ``width`` channels by a fixed random matrix.
        taps: the one stage that is used.
        width: channels without a backbone.
        levels: of the pyramid, 2 or more.
        stacks: of couplings.
        kernel: side of the couplings' convolutions, odd.
        over: log scales sum to 0 over the ``channels`` of each pixel or the ``pixels`` of each
            channel, of a batch together.
        lr: learning rate of Adam.
        batch_size: images in an update, of which all pairs are compared; 2 or more.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
    """
    if batch_size < 2:
        raise ArgumentError("pyramid_flow compares images: give batch_size=2 or more.")
    if options["backbone"] == SPREAD:
        encoder: nn.Module = Spread(channels, width)
        shape = (width, options["size"])
    else:
        backbone = encoder = backbone_of(options, channels)
        shape = (backbone.channels[-1], options["size"] // backbone.strides[-1])
    if shape[1] % 2 ** (levels - 1):
        raise ArgumentError(
            f"a pyramid of levels={levels} needs a grid that can be halved {levels - 1} times; of "
            f"size={options['size']} {shape[1]} cells are left. Give another size or fewer levels."
        )
    flow = PyramidFlow(shape[0], levels, stacks, kernel, over)
    optimizer = adam(lr, betas=(0.5, 0.9), eps=1e-4, weight_decay=1e-5)
    player = Player("flow", [flow], optimizer, clip=1.0)
    phase = Phase("flow", [player], steps, epochs, batch_size)
    return TemplateFlow(encoder, flow, shape, levels, phase)
