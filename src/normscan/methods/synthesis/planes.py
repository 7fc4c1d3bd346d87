"""Volumes as slices along all three axes: a network of slices learns and judges them all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.synthesis.common import Segmenter

AT_ONCE = 32  # slices that the network sees together


class ThreePlanes(Method):
    """A segmenter of slices, on volumes; see ``autoseg``.

    Training takes one slice of each volume of a batch, all of the same plane and place, so that
    donors lie where their hosts lie. The map is the mean of the three planes.

    Args:
        segmenter: of slices (B, C, H, W).
        neighbours: slices on each side that it sees.
    """

    def __init__(self, segmenter: Segmenter, neighbours: int) -> None:
        super().__init__()
        self.segmenter = segmenter
        self._neighbours = neighbours

    def phases(self) -> list[Phase]:
        return self.segmenter.phases()

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        draw = batch.rng.uniform((len(batch), 2))[0]  # one place for the whole batch
        axis = int(3 * draw[0])
        volumes = batch.image.movedim(2 + axis, 2)
        objects = batch.foreground.movedim(2 + axis, 2)
        edge = self._neighbours
        seen = objects.any(dim=0).flatten(2).any(dim=2)[0]
        seen[:edge] = False
        seen[len(seen) - edge :] = False
        places = seen.nonzero()[:, 0] if bool(seen.any()) else torch.tensor([len(seen) // 2])
        at = int(places[int(draw[1] * len(places))])
        slices = Batch(
            volumes[:, :, at],
            objects[:, :, at],
            batch.rng,
            torch.full((len(batch),), at / len(seen), device=volumes.device),
            context=volumes[:, :, at - edge : at + edge + 1] if edge else None,
            subject=batch.subject,
        )
        return self.segmenter.loss(slices, phase, player)

    def plane(self, batch: Batch, axis: int) -> Tensor:
        """What the network says of all slices along an axis, (B, 1, *spatial)."""
        volumes = batch.image.movedim(2 + axis, 2)
        n = volumes.shape[2]
        edge = self._neighbours
        around = F.pad(volumes, (0, 0, 0, 0, edge, edge))  # nothing lies beyond the ends
        windows = around.unfold(2, 2 * edge + 1, 1).movedim(-1, 3)  # (B, C, n, 2 edge + 1, H, W)
        stacks = windows.movedim(2, 1).flatten(0, 1)
        found = []
        for part in stacks.split(AT_ONCE):
            middle = part[:, :, edge]
            slices = Batch(
                middle,
                torch.ones_like(middle[:, :1], dtype=torch.bool),
                batch.rng,
                torch.zeros(len(part)),
                context=part if edge else None,
            )
            map = self.segmenter.maps(slices).map
            assert map is not None
            found.append(map)
        return torch.cat(found).unflatten(0, (-1, n)).movedim(1, 2).movedim(2, 2 + axis)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        mean = torch.stack([self.plane(batch, axis) for axis in range(3)]).mean(0)
        means = mean[:, 0].mean((1, 2))  # of the slices along the last axis, the axial ones
        count = max(1, round(0.1 * means.shape[1]))
        return Maps(map=mean, score=means.topk(count, dim=1).values.mean(1))
