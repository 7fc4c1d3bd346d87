"""The mechanism that these systems share: plant an anomaly, learn to say where and how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.synthesis.corruption import Corrupted, Corruption, Mixture
from normscan.synthesis.donors import partners
from normscan.synthesis.draws import between, rotations, spread_out, taken_from

Loss = Callable[[Tensor, Corrupted], dict[str, Tensor]]


def standardised(image: Tensor) -> Tensor:
    """Each image (B, C, *spatial) with mean 0 and standard deviation 1."""
    axes = tuple(range(1, image.ndim))
    spread, mean = torch.std_mean(image, axes, keepdim=True, correction=0)
    return (image - mean) / spread.clamp_min(1e-6)


def cross_entropy(output: Tensor, made: Corrupted) -> dict[str, Tensor]:
    """Binary cross-entropy with a label between 0 and 1, mean over all pixels."""
    return {"bce": F.binary_cross_entropy_with_logits(output, made.label)}


def class_entropy(output: Tensor, made: Corrupted) -> dict[str, Tensor]:
    """Cross-entropy with the number of a class, mean over all pixels."""
    return {"entropy": F.cross_entropy(output, made.label[:, 0].long())}


def jolted(batch: Batch, turn: float, shift: float) -> Batch:
    """The batch with its images and foregrounds turned and shifted a little, each its own way.

    Args:
        batch: in the plane or in space.
        turn: largest angle in degrees.
        shift: largest shift, a share of each axis.
    """
    n, dims = len(batch), batch.image.ndim - 2
    sizes = torch.tensor(batch.image.shape[2:]).float()
    matrix = rotations(batch.rng, n, dims, turn * torch.pi / 180)
    middle = (sizes - 1) / 2
    source = middle + between(batch.rng, (n, dims), -shift, shift) * sizes
    centre = middle.expand(n, -1)
    return replace(
        batch,
        image=taken_from(batch.image, source, centre, matrix=matrix),
        foreground=taken_from(batch.foreground.float(), source, centre, matrix=matrix) > 0.5,
    )


class Segmenter(Method):
    """A network that learns to label planted anomalies; its map is what it says of a scan.

    Args:
        network: image (B, C, *spatial) to logits (B, 1 or classes, *spatial).
        corrupt: what is planted.
        phases: from the network to the stages of training.
        loss: of logits and what was planted.
        prepare: of images before anything else.
        augment: of training batches before anything is planted.
        activation: of one output at test.
    """

    def __init__(
        self,
        network: nn.Module,
        corrupt: Corruption | Mixture,
        phases: Callable[[nn.Module], list[Phase]],
        loss: Loss = cross_entropy,
        prepare: Callable[[Tensor], Tensor] | None = None,
        augment: Callable[[Batch], Batch] | None = None,
        activation: Callable[[Tensor], Tensor] = torch.sigmoid,
    ) -> None:
        super().__init__()
        self.network = network
        self._corrupt = corrupt
        self._training = phases
        self._loss = loss
        self._prepare = prepare or (lambda image: image)
        self._augment = augment
        self._activation = activation

    def phases(self) -> list[Phase]:
        return self._training(self.network)

    def planted(self, batch: Batch) -> Corrupted:
        """The batch's images with anomalies; donors are other images of the batch."""
        if self._augment is not None:
            batch = self._augment(batch)
        x, objects = self._prepare(batch.image), batch.foreground
        donor, donor_objects = partners(x, objects, batch.position, batch.subject)
        return self._corrupt(x, donor, batch.rng, objects, donor_objects)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        made = self.planted(batch)
        return self._loss(self.network(made.image), made)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        output = self.network(self._prepare(batch.image))
        if output.shape[1] == 1:
            return Maps(map=self._activation(output))
        shares = torch.linspace(0, 1, output.shape[1], device=output.device)
        expected = spread_out(shares[None], output.ndim - 2) * output.softmax(1)
        return Maps(map=expected.sum(1, keepdim=True))
