"""Copied cuboids in volumes: a network segments them and says whether there are any."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.classified import ClassifiedUNet
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.blends import softened
from normscan.synthesis.corruption import Corrupted, Mixture
from normscan.synthesis.draws import grid, read_at, spread_out

RISE = 0.3  # share of the updates in which the rate rises, and in which misses cost more
FIRST, LAST = 100.0, 0.05  # weight of the misses
LEAST = 20  # changed voxels that make an anomaly


def one_cycle(step: int, steps: int) -> float:
    """Learning-rate factor: straight from 1/25 up to 1, then straight down to nearly 0."""
    top = max(1e-9, RISE * steps - 1)
    if step <= top:
        return 0.04 + 0.96 * step / top
    return 1 - (1 - 4e-6) * (step - top) / max(1e-9, steps - 1 - top)


def elastic(x: Tensor, batch: Batch, push: float = 20, width: float = 5) -> Tensor:
    """Half of the images (B, C, *spatial) with their tissue moved by smooth noise.

    Args:
        x: the images.
        batch: source of randomness.
        push: by which the smoothed noise U(-1, 1) is multiplied, in pixels.
        width: deviation of the smoothing, in pixels.
    """
    n, *spatial = len(x), *x.shape[2:]
    noise = 2 * batch.rng.uniform((n, len(spatial), *spatial)).to(x) - 1
    moves = push * softened(noise, torch.full((n,), width))
    some = spread_out(batch.rng.uniform((n, 1)) < 0.5, len(spatial)).to(x.device)
    return torch.where(some, read_at(x, grid(tuple(spatial), x.device)[None] + moves), x)


class CopyPaste(Method):
    """See ``pseudoanomaly_3d``.

    Args:
        network: image to logits of its pixels and of its class.
        training: the shared arguments.
        patches: look at the image in overlapping patches, half as long as it, and tell the network
            which one it sees.
    """

    def __init__(self, network: ClassifiedUNet, training: Schedule, patches: bool) -> None:
        super().__init__()
        self.network = network
        self._training, self._patches = training, patches
        self._corrupt = tasks.copy_paste()
        kinds = ("erased", "texture", "resolution", "scar")
        self._unlike = Mixture(tuple(tasks.TASKS[kind].corrupt for kind in kinds))
        self.miss: Tensor
        self.register_buffer("miss", torch.tensor(FIRST))

    def phases(self) -> list[Phase]:
        def rhythm(step: int, steps: int) -> float:
            # Asked once in each update: this is where the price of misses falls.
            done = (step + 1) / (RISE * steps)
            self.miss.fill_(FIRST * (1 - done) if done < 1 else LAST)
            return one_cycle(step, steps)

        return [phase(self.learnt_parts(), self._training, "segment", rhythm=rhythm, keep="best")]

    def learnt_parts(self) -> list[nn.Module]:
        """The networks that are trained."""
        return [self.network]

    def planted(self, batch: Batch) -> tuple[Tensor, Corrupted]:
        """Healthy images and the same with anomalies; at validation of kinds it doesn't learn."""
        if not self.network.training:
            x = batch.image
            return x, self._unlike(x, x, batch.rng, batch.foreground)
        x = elastic(batch.image, batch)
        made = self._corrupt(x, x, batch.rng, batch.foreground)
        return x, made._replace(image=made.image.clamp(0, 1))

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        places = None
        if self._patches:
            batch, places = self._one_patch(batch)
        x, made = self.planted(batch)
        healthy, none, deep = self.network.seen(with_places(x, places))
        logits, some, changed = self.network.seen(with_places(made.image, places))
        enough = (made.label.flatten(1).sum(1) >= LEAST).to(some)
        terms = {
            "healthy": F.binary_cross_entropy_with_logits(healthy, torch.zeros_like(healthy)),
            "planted": F.binary_cross_entropy_with_logits(logits, made.label),
            "class": F.binary_cross_entropy_with_logits(none, torch.zeros_like(none))
            + F.binary_cross_entropy_with_logits(some, enough),
        }
        if self.network.training:
            terms["missed"] = self.miss * ((1 - logits.sigmoid()) * made.label).mean()
        return {**terms, **self.further(x, made.image, deep, changed)}

    def further(
        self, healthy: Tensor, planted: Tensor, deep: Tensor, changed: Tensor
    ) -> dict[str, Tensor]:
        """Terms of a second network, by both images and the deepest features of both."""
        return {}

    def _one_patch(self, batch: Batch) -> tuple[Batch, Tensor]:
        """A random patch of each image, and which one it is."""
        cuts = _patches(tuple(batch.image.shape[2:]))
        places = batch.rng.integers(0, len(cuts), (len(batch), 1))[:, 0]
        image, foreground = (
            torch.cat([x[i : i + 1, :, *cuts[p]] for i, p in enumerate(places.tolist())])
            for x in (batch.image, batch.foreground)
        )
        return replace(batch, image=image, foreground=foreground), places

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        if not self._patches:
            logits, found = self.network(x)
            return Maps(map=logits.sigmoid(), score=found.sigmoid())
        whole, score = torch.zeros_like(x[:, :1]), x.new_zeros(len(x))
        for number, cut in enumerate(_patches(tuple(x.shape[2:]))):
            places = torch.full((len(x),), number)
            logits, found = self.network(with_places(x[:, :, *cut], places))
            part = whole[:, :, *cut]
            whole[:, :, *cut] = torch.maximum(part, logits.sigmoid())
            score = torch.maximum(score, found.sigmoid())
        return Maps(map=whole, score=score)


def _patches(spatial: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Three places along each axis: patches half as long as an image, a quarter apart."""
    lines = [[slice(k * n // 4, k * n // 4 + n // 2) for k in range(3)] for n in spatial]
    return list(itertools.product(*lines))


def with_places(x: Tensor, places: Tensor | None) -> Tensor:
    """Patches beside a channel for each place, of which their own is 1; without places x itself."""
    if places is None:
        return x
    dims = x.ndim - 2
    told = spread_out(F.one_hot(places, 3**dims), dims).to(x)
    return torch.cat([x, told.expand(-1, -1, *x.shape[2:])], 1)


@register(
    "pseudoanomaly_3d",
    paper="Cho 2021",
    dims=(2, 3),
    presets={
        "abdomen": {"size": 128, "patches": True},
        "laptop": {"size": 32, "width": 8, "depth": 3, "steps": 300, "batch_size": 4},
    },
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={"size": 32, "width": 4, "depth": 3, "steps": 80, "batch_size": 6},
    options=schedule(lr=1e-2, batch_size=1, epochs=100),
)
def pseudoanomaly_3d(
    dims: int = 3,
    channels: int = 1,
    size: int = 64,
    width: int = 64,
    depth: int = 4,
    patches: bool = False,
    **training: Unpack[Schedule],
) -> Method:
    """Copied and turned cuboids in volumes, found by a 3D U-Net that also classifies.

    Cho, Kang and Park, MOOD 2021 (LNCS 13166), first in both of its tasks. A cuboid of the scan
    itself, 10 to 32 of 64 voxels along each edge and at least 30 % of it anatomy, is pasted at a
    place that is half of its length away along one axis at least; half of them are turned by up to
    45 degrees about each axis, and half shifted in intensity by up to 0.2. A U-Net of 64 to 512
    channels segments it, and a branch from its deepest level says whether there is one; that
    probability is also a channel of the last convolution. Cross-entropy of healthy and changed scans
    and of the class, and a penalty on missed voxels that falls from 100 to 0.05 over the first 30 %
    of training. The numbers are those of the group's next entry (2na-97/CGV_MOOD2022), since the
    article has no code: whole heads of 64 voxels a side, Adam with one cycle up to 1e-2, batches of
    1, 100 passes; half of the volumes are deformed elastically. The score is the class's probability.
    ``preset=abdomen`` cuts volumes of 128 into 27 patches that a network is told apart by further
    channels, takes the highest of them, and keeps the probability out of the last convolution.
    Images from 0 to 1.

    Departures:
        two dimensions: the same with rectangles on slices; the article has volumes alone.
        turned cuboids: read between voxels; the nearest voxel in the release, whose rotation also
            moves the cuboid round the volume's centre.
        shifts of intensity: of tissue; in the release of what is pasted of the background too.
        small anomalies: of less than 20 voxels count as healthy ones; drawn anew in the release.
        patches: also those that show hardly any tissue; drawn anew in the release.
        kept weights: the best on pieces cut out, shuffled or coarse and on scars; the release also
            has filtered and turned pieces.
        second network: none; the release of 2022 adds a 2D network and a contrastive loss.
        momentum: constant; it falls and rises against the learning rate in the release.

    Args:
        width: channels of the U-Net's first level; each level doubles them.
        depth: how often the U-Net halves its grid.
        patches: cut the volumes, see above.
    """
    inputs = channels + (3**dims if patches else 0)
    network = ClassifiedUNet(dims, inputs, width, depth, joined=not patches)
    return CopyPaste(network, training, patches)
