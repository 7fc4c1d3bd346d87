"""Patches beside what the rest of the image says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.features.common import FILLED, RESNET18, Tapped, backbone_of, tapped
from normscan.networks.backbones import Backbone
from normscan.networks.partial import HiddenPatchNetwork
from normscan.registry import register
from normscan.rng import Rng
from normscan.signatures import Options
from normscan.synthesis.placement import drawn
from normscan.synthesis.shapes import ellipses

POWER = 5  # of the inverse distances by which the map is made of the patches
CELL = 4  # pixels to a cell of the map
AT_ONCE = 64  # patches in a pass
LEAST = 9  # pixels along a patch's side


def patch_network(channels: int, side: int, width: int, dim: int) -> nn.Sequential:
    """Convolutions and poolings of a patch to one vector.

    Args:
        channels: of the image.
        side: of the patch, 9 or more.
        width: channels between.
        dim: numbers in the vector.
    """
    parts: list[nn.Module] = []
    a, left = channels, side
    while left >= LEAST:
        parts += [nn.Conv2d(a, width, 5), nn.LeakyReLU(5e-3), nn.MaxPool2d(2)]
        a, left = width, (left - 4) // 2
    return nn.Sequential(
        *parts, nn.Conv2d(a, 2 * width, left), nn.LeakyReLU(5e-3), nn.Conv2d(2 * width, dim, 1),
        nn.Flatten(),
    )  # fmt: skip


def decorrelation(x: Tensor) -> Tensor:
    """Sum of the absolute correlations between different numbers of vectors (B, dim)."""
    centred = x - x.mean(0)
    spread = centred.norm(dim=0).clamp_min(1e-6)
    correlation = (centred / spread).T @ (centred / spread)
    return correlation.abs().sum() - correlation.diagonal().abs().sum()


@dataclass(frozen=True)
class PatchGrid:
    """Where patches lie in an image.

    Attributes:
        size: of the image in pixels.
        side: of a patch in pixels.
        count: patches along each axis.
    """

    size: int
    side: int
    count: int

    def corners(self) -> Tensor:
        """First row and column (count**2, 2) of each patch."""
        at = torch.linspace(0, self.size - self.side, self.count).round().long()
        return torch.cartesian_prod(at, at).reshape(-1, 2)

    def random(self, n: int, rng: Rng) -> Tensor:
        """Corners (n, 2) of patches anywhere."""
        return rng.integers(0, self.size - self.side + 1, (n, 2))

    def within(self, corners: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (n, side) and columns of patches."""
        along = torch.arange(self.side)
        return corners[:, :1] + along, corners[:, 1:] + along

    def cut(self, image: Tensor, corners: Tensor) -> Tensor:
        """The patches (n, C, side, side) of images (n, C, size, size)."""
        rows, columns = self.within(corners)
        own = torch.arange(len(image))[:, None, None]
        return image[own, :, rows[:, :, None], columns[:, None]].movedim(-1, 1)

    def shown(self, corners: Tensor, like: Tensor) -> Tensor:
        """(n, 1, size, size), 0 in the patches."""
        rows, columns = self.within(corners)
        result = torch.ones(len(corners), 1, self.size, self.size).to(like)
        own = torch.arange(len(corners))[:, None, None]
        result[own, 0, rows[:, :, None], columns[:, None]] = 0
        return result

    def centres(self, corners: Tensor) -> Tensor:
        """Columns and rows (n, 2) of the patches' centres, -1 to 1 from border to border."""
        return ((corners.float() + self.side / 2) / self.size * 2 - 1).flip(1)

    def spreading(self) -> Tensor:
        """Weights (cells**2, count**2) of the patches in each cell of the map, which sum to 1."""
        middles = self.corners().float() + (self.side - 1) / 2
        at = torch.arange(CELL / 2 - 0.5, self.size, CELL)
        cells = torch.cartesian_prod(at, at)
        weights = torch.cdist(cells, middles).clamp_min(0.5) ** -POWER
        return weights / weights.sum(1, keepdim=True)


class Stages(TypedDict):
    """The arguments of ``stages``, for ``**training: Unpack[Stages]`` in a signature."""

    lr: float
    batch_size: int
    epochs: int
    steps: int | None


class Glancing(Tapped, Stages):
    """The arguments of ``tapped`` and of ``stages``."""


stages = Options(
    get_type_hints(Stages),
    {"lr": 1e-4, "batch_size": 32, "epochs": 100, "steps": None},
    {
        "lr": "learning rate of Adam.",
        "batch_size": "patches in an update, one of each image.",
        "epochs": "passes over the training images in each of the three stages.",
        "steps": "number of updates in each stage instead.",
    },
)


class GlancedPatches(Method):
    """A local and a global look at each patch; see ``glance_patch``."""

    spread: Tensor

    def __init__(
        self,
        teacher: Backbone,
        local: nn.Sequential,
        whole: HiddenPatchNetwork,
        dim: int,
        grid: PatchGrid,
        share: float,
        training: Glancing,
    ) -> None:
        super().__init__()
        self.teacher, self.local, self.whole = teacher, local, whole
        self.decoder = nn.Linear(dim, teacher.channels[-1])
        self.classifier = nn.Sequential(
            nn.Linear(2 * dim, dim), nn.LeakyReLU(5e-3), nn.Linear(dim, 1)
        )
        self.grid, self.share, self.training_options = grid, share, training
        self.register_buffer("spread", grid.spreading(), persistent=False)

    def phases(self) -> list[Phase]:
        given, optimizer = self.training_options, adam(self.training_options["lr"])
        parts: dict[str, list[nn.Module]] = {
            "local": [self.local, self.decoder],
            "global": [self.whole],
            "distortion": [self.classifier],
        }
        return [
            Phase(
                name, [Player(name, modules, optimizer)], given["steps"], given["epochs"],
                given["batch_size"],
            )
            for name, modules in parts.items()
        ]  # fmt: skip

    def taught(self, patches: Tensor) -> Tensor:
        """What the teacher says of patches, enlarged to what it can take, (n, channels)."""
        side = 2 * self.teacher.strides[-1]
        if patches.shape[-1] < side:
            patches = F.interpolate(patches, (side, side), mode="bilinear", align_corners=False)
        return list(self.teacher(patches).values())[-1].mean((2, 3))

    def glance(self, image: Tensor, corners: Tensor) -> Tensor:
        """What images (n, C, H, W) say of a patch each, (n, dim)."""
        found: Tensor = self.whole(
            image, self.grid.shown(corners, image), self.grid.centres(corners)
        )
        return found

    def stained(self, patches: Tensor, rng: Rng) -> Tensor:
        """Patches with an ellipse of one random colour somewhere."""
        n, channels, *spatial = patches.shape
        outline = ellipses((0.25, 0.8))(n, (spatial[0], spatial[1]), rng)
        centre = rng.uniform((n, 2)) * self.grid.side
        mask = drawn(outline, centre, (spatial[0], spatial[1]), patches.device)
        colour = rng.uniform((n, channels, 1, 1)).to(patches)
        return torch.where(mask, colour, patches)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        corners = self.grid.random(len(batch), batch.rng)
        patches = self.grid.cut(batch.image, corners)
        if phase == "local":
            code = self.local(patches)
            with torch.no_grad():
                target = self.taught(patches)
            distance = (self.decoder(code) - target).square().mean()
            dim = code.shape[1]
            return {"distilled": distance, "compact": decorrelation(code) / (dim * (dim - 1))}
        if phase == "global":
            with torch.no_grad():
                code = self.local(patches)
            return {"inconsistency": (self.glance(batch.image, corners) - code).square().mean()}
        with torch.no_grad():
            said = self.glance(batch.image, corners)
            clean, dirty = (
                self.local(p) for p in (patches, self.stained(patches, batch.rng))
            )  # fmt: skip
        logits = [self.classifier(torch.cat([code, said], 1)) for code in (clean, dirty)]
        return {"clean": F.softplus(logits[0]).mean(), "stained": F.softplus(-logits[1]).mean()}

    @torch.no_grad()
    def scores(self, image: Tensor) -> Tensor:
        """How odd each patch of the grid is, (B, count**2)."""
        corners = self.grid.corners()
        number = len(corners)
        which = torch.arange(len(image)).repeat_interleave(number)
        every = corners.repeat(len(image), 1)
        found = []
        for part, at in zip(which.split(AT_ONCE), every.split(AT_ONCE), strict=True):
            images = image[part.to(image.device)]
            code, said = self.local(self.grid.cut(images, at)), self.glance(images, at)
            inconsistent = (code - said).square().mean(1)
            distorted = self.classifier(torch.cat([code, said], 1))[:, 0].sigmoid()
            found.append(self.share * inconsistent + (1 - self.share) * distorted)
        return torch.cat(found).unflatten(0, (len(image), number))

    def maps(self, batch: Batch) -> Maps:
        scores = self.scores(batch.image)
        cells = round(len(self.spread) ** 0.5)
        spread = (scores @ self.spread.to(scores).T).reshape(len(batch), 1, cells, cells)
        return Maps(map=spread)


@register(
    "glance_patch",
    paper="Wang 2021",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "side": 17, "patches": 8, "width": 64, "dim": 64, "levels": 4,
            "taps": ("layer3",), "steps": 300, "lr": 1e-3, "batch_size": 16, "preprocess": FILLED,
        },
    },
    reduction="max",
    preprocess={"scaling": "file", "crop": "none", "fit": "stretch"},
    tiny={
        "size": 32, "side": 9, "patches": 6, "width": 16, "dim": 16, "levels": 3,
        "taps": ("layer1",), "weights": "random", "steps": 60, "lr": 2e-3, "batch_size": 16,
        "preprocess": FILLED,
    },
    options=tapped(size=256, backbone=RESNET18, taps=("last",)) | stages,
)  # fmt: skip
def glance_patch(
    dims: int = 2,
    channels: int = 1,
    side: int = 33,
    patches: int = 20,
    width: int = 128,
    dim: int = 128,
    levels: int = 5,
    share: float = 0.8,
    **options: Unpack[Glancing],
) -> Method:
    """Patches that the rest of the image doesn't expect, or that look distorted.

    Wang, Wu, Cui and Shen, CVPR 2021 ("Glancing at the patch"): a local network learns vectors of
    patches from a ResNet-18, by a decoder's squared error and by decorrelation; a global one sees the
    image without the patch, by partial convolutions, and learns to say the same vector; a classifier
    of both vectors learns to tell patches with a random stain. A patch's score is how far both vectors
    are apart, and how surely it is distorted; the map spreads the patches' scores over the image.

    Departures:
        everything but the three parts: the authors released no code. Side, number of patches, share
            of the two scores (0.8 to 0.2) and the map by inverse distances to the fifth power are those
            of a port; networks, stains (an ellipse of one grey value) and the training's numbers ours.
        global network: what it says is read at the hidden patch, with strides of 2 that close the gap.
        ImageNet: the local network learns from patches of the healthy images alone.

    Args:
        size: pixels along each axis.
        taps: the teacher's stage, averaged; ``last`` is the one that its classifier pools.
        side: of a patch in pixels, 9 or more.
        patches: along each axis.
        width: channels of both networks' first level.
        dim: numbers in a vector.
        levels: that the global network halves the image to.
        share: of the distance in a patch's score.
    """
    size = options["size"]
    if not LEAST <= side <= size:
        raise ArgumentError(f"side={side}: patches have {LEAST} to {size} pixels (size) a side.")
    return GlancedPatches(
        backbone_of(options, channels), patch_network(channels, side, width, dim),
        HiddenPatchNetwork(channels, width, levels, dim), dim, PatchGrid(size, side, patches), share,
        options,
    )  # fmt: skip
