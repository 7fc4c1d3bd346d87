"""Siamese patch autoencoders with one-class support vector machines on the codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.latent import SiamesePatches
from normscan.methods.base import Batch, Maps, Method
from normscan.methods.schedule import Schedule, schedule
from normscan.networks.patch import PatchAutoencoder
from normscan.registry import register
from normscan.scores.density import OneClassSVM

LEAST = 5  # points that a machine is fitted to


def standardised(scores: Tensor, inside: Tensor) -> Tensor:
    """Deviations above the mean of the foreground; 0 below it and outside the foreground.

    Args:
        scores: (B, 1, h, w).
        inside: of the same shape, bool.
    """
    n = inside.sum((1, 2, 3), keepdim=True).clamp_min(1)
    # What is outside may be anything and must not count.
    scores = torch.where(inside, scores, 0)
    mean = scores.sum((1, 2, 3), keepdim=True) / n
    centred = torch.where(inside, scores - mean, 0)
    deviation = (centred.square().sum((1, 2, 3), keepdim=True) / n).sqrt()
    return (centred / deviation.clamp_min(1e-6)).clamp_min(0)


@dataclass(frozen=True)
class Machines:
    """The one-class machines.

    Attributes:
        nu: share of the codes that one may leave outside.
        samples: codes that one is fitted to at most.
        stride: pixels between the patches at test.
    """

    nu: float = 0.03
    samples: int = 1000
    stride: int = 1


class Supported(SiamesePatches):
    """Siamese patches whose codes one-class machines score.

    Args:
        network: makes the codes.
        machines: how they are fitted.
        alpha: weight of the cosine between two controls' codes.
        patches: that a pair of images gives to an update.
        training: the shared arguments.
    """

    def __init__(
        self,
        network: PatchAutoencoder,
        machines: Machines,
        alpha: float,
        patches: int,
        training: Schedule,
    ) -> None:
        super().__init__(network, alpha, patches, machines.stride, training)
        self.nu, self.samples = machines.nu, machines.samples


class OwnSupport(Supported):
    """A machine for each test image, fitted to random patches of its own foreground."""

    def scores(self, codes: Tensor, keys: Tensor) -> Tensor:
        """Anomaly (n,) of the codes (n, latent) by those with the smallest keys (n,)."""
        chosen = keys.topk(min(self.samples, len(keys)), largest=False).indices.sort().values
        known = codes[chosen]
        spread = known.std(0, correction=0).clamp_min(1e-6)
        centre = known.mean(0)
        machine = OneClassSVM(codes.shape[1], self.nu, "median").to(codes)
        machine.fit((known - centre) / spread)
        result: Tensor = machine((codes - centre) / spread)
        return result

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        codes = self.codes(batch.image)
        scores = torch.zeros_like(codes[:, :1])
        inside = self.places(batch.foreground, scores)
        keys = batch.rng.uniform(scores.shape).to(codes)
        for i, mask in enumerate(inside[:, 0]):
            if int(mask.sum()) >= LEAST:
                scores[i, 0, mask] = self.scores(codes[i][:, mask].T, keys[i, 0, mask])
        return Maps(map=standardised(scores, inside))


class VoxelSupport(Supported):
    """A machine for each place of a grid, fitted to the controls' codes there.

    Args:
        network, machines, alpha, patches, training: as of ``Supported``.
        shape: number of places, and of the numbers in a code.
    """

    centre: Tensor
    spread: Tensor
    support: Tensor
    dual: Tensor
    gamma: Tensor
    offset: Tensor

    def __init__(
        self,
        network: PatchAutoencoder,
        machines: Machines,
        alpha: float,
        patches: int,
        training: Schedule,
        shape: tuple[int, int],
    ) -> None:
        super().__init__(network, machines, alpha, patches, training)
        places, latent = shape
        self.register_buffer("centre", torch.zeros(places, latent))
        self.register_buffer("spread", torch.ones(places, latent))
        self.register_buffer("support", torch.zeros(places, 1, latent))
        # Before the fit: the distance from 0, as one support vector there gives it.
        self.register_buffer("dual", torch.ones(places, 1))
        self.register_buffer("gamma", torch.full((places,), 1 / latent))
        self.register_buffer("offset", torch.ones(places))

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The machines, on random controls; where too few have foreground there is none."""
        codes, inside = self._controls(batches)
        places = codes.shape[1]
        machines: list[OneClassSVM | None] = []
        for p in range(places):
            known = codes[inside[:, p], p]
            if len(known) < LEAST:
                machines.append(None)
                continue
            self.centre[p], self.spread[p] = known.mean(0), known.std(0, correction=0)
            self.spread[p].clamp_min_(1e-6)
            machine = OneClassSVM(codes.shape[2], self.nu, "median").to(codes)
            machine.fit((known - self.centre[p]) / self.spread[p])
            machines.append(machine)
        # One block for all places; a machine with fewer vectors has zero weights for the rest.
        width = max((len(m.dual) for m in machines if m), default=1)
        self.support = codes.new_zeros(places, width, codes.shape[2])
        self.dual = codes.new_zeros(places, width)
        for p, m in enumerate(machines):
            if m:
                # Weights with the sum 1: else a machine of many controls would have large scores.
                n, total = len(m.dual), m.dual.sum()
                self.support[p, :n], self.dual[p, :n] = m.support, m.dual / total
                self.gamma[p], self.offset[p] = m.gamma, 1 - m.boundary / total

    def _controls(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Codes (N, P, latent) and foreground (N, P) of at most ``samples`` random images."""
        kept: tuple[Tensor, Tensor, Tensor] | None = None
        for batch in batches:
            codes = self.codes(batch.image)
            inside = self.places(batch.foreground, codes[:, :1]).flatten(1)
            keys = batch.rng.uniform((len(batch),)).to(codes)
            rows = codes.flatten(2).transpose(1, 2)
            if kept is None:
                kept = rows, inside, keys
            else:
                kept = (
                    torch.cat([kept[0], rows]),
                    torch.cat([kept[1], inside]),
                    torch.cat([kept[2], keys]),
                )
            if len(kept[2]) > self.samples:
                lowest = kept[2].topk(self.samples, largest=False).indices.sort().values
                kept = kept[0][lowest], kept[1][lowest], kept[2][lowest]
        if kept is None:
            raise ArgumentError("siamese_ocsvm needs training images.")
        return kept[:2]

    def scores(self, codes: Tensor) -> Tensor:
        """Negative decision values (P, B) of the codes (P, B, latent); 0 on a place's boundary."""
        x = (codes - self.centre[:, None]) / self.spread[:, None]
        distances = torch.cdist(x, self.support, compute_mode="donot_use_mm_for_euclid_dist")
        kernel = (-self.gamma[:, None, None] * distances.square()).exp()
        return self.offset[:, None] - (kernel @ self.dual[..., None])[..., 0]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        codes = self.codes(batch.image)
        rows = codes.flatten(2).permute(2, 0, 1)
        scores = self.scores(rows).T.reshape(len(batch), 1, *codes.shape[2:])
        known = (self.dual.sum(1) > 0).reshape(1, 1, *codes.shape[2:])
        inside = self.places(batch.foreground, scores) & known
        enlarged = F.interpolate(
            standardised(scores, inside), batch.image.shape[2:], mode="bilinear"
        )
        return Maps(map=enlarged)


@register(
    "siamese_ocsvm",
    paper="Alaverdyan 2020, Pinon 2023",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "filters": (8, 8, 16, 16), "lr": 5e-3, "steps": 500, "patches": 16,
            "preprocess": {"scaling": "median"},
        },
    },
    postprocess=("foreground",),
    reduction="max",
    smallest_component=10,
    # A lesion of the toy fills a tenth of its image: no machine of that image would find it.
    tiny={
        "size": 64, "fitted": "voxel", "stride": 4, "lr": 3e-3, "steps": 80, "patches": 8,
        "samples": 48,
    },
    options=schedule(lr=1e-3, batch_size=16, epochs=30),
)  # fmt: skip
def siamese_ocsvm(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    filters: tuple[int, int, int, int] = (3, 4, 12, 16),
    alpha: float = 0.005,
    patches: int = 32,
    fitted: Literal["patient", "voxel"] = "patient",
    nu: float = 0.03,
    samples: int = 1000,
    stride: int = 1,
    **training: Unpack[Schedule],
) -> Method:
    """Siamese patch autoencoder with one-class support vector machines.

    Patches of 15 x 15 pixels at the same place in two controls are restored while their codes are
    drawn together; a one-class support vector machine with a Gaussian kernel on the standardised
    codes scores the patch around every pixel. Alaverdyan et al., Medical Image Analysis 2020, fit one
    for each voxel to all controls (``voxel``); Pinon et al., MIDL 2023, one for each patient to random
    patches of that patient's own brain, where lesions are rare (``patient``, the default: it needs no
    registration, without which the same voxel is not the same place). The map is standardised over
    the foreground, and what is below its mean is 0.

    Departures:
        slices: stand for volumes, so a machine is fitted to each slice, or to each place in the
            plane, and a lesion that fills much of a slice passes for normal with ``patient``.
        network: neither article released code. This is the one for patches of brains in the
            authors' later release, with a linear output in place of its sigmoid.
        kernel: its width is the median distance of the training codes, our choice.
        score: the map's largest value; components of 10 pixels or fewer are dropped. The articles
            rank clusters by their mean.

    Args:
        filters: of the four convolutions; the last is the length of the code.
        alpha: weight of the cosine between two controls' codes, beside the summed squared error.
        patches: that a pair of images gives to an update, at random common places.
        fitted: ``patient`` or ``voxel``; with ``voxel`` the scans should lie in one space, and
            ``stride=4`` keeps the number of machines small.
        nu: share of the codes that a machine may leave outside.
        samples: random patches of the image that its machine is fitted to, 500 to 1000 in the
            article; with ``voxel``, random controls at most.
        stride: pixels between patches at test.
    """
    network = PatchAutoencoder(channels, filters)
    machines = Machines(nu, samples, stride)
    if fitted == "patient":
        return OwnSupport(network, machines, alpha, patches, training)
    places = len(range(stride // 2, size, stride)) ** 2
    shape = (places, filters[-1])
    return VoxelSupport(network, machines, alpha, patches, training, shape)
