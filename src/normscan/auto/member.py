"""A candidate with what its healthy maps are like: from its map to a surprise, from score to quantile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from normscan.auto.batches import resized, scaled
from normscan.methods.base import Batch, Method
from normscan.scores.places import Places
from normscan.scores.postprocess import apply_chain
from normscan.scores.reductions import Reduction

# Image scores beside the usual one; few, since each more makes a lucky choice likelier.
SCORES = (
    "top_1_percent", "top_5_percent", "max", "foreground_mean",
    "top_1_percent+place", "foreground_mean+place", "max+place",
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """What a candidate sees in an image, on its own grid.

    Attributes:
        anomaly: (*grid) float32, post-processed; zeros where the method only scores.
        inside: (*grid) bool.
        own: score that the method gives, or None.
    """

    anomaly: np.ndarray
    inside: np.ndarray
    own: float | None


class Member(nn.Module):
    """A candidate.

    Args:
        name: id and preset, as in ``dae:laptop``.
        method: the candidate.
        side: pixels along each axis of its input.
        chain: post-processing of its maps.
        reduction: its usual one.

    Attributes:
        weight: () of it; 0 where it was dropped.
        chosen: () place of its image score in ``scores``.
        mean: of healthy maps, (*grid) or () for all places alike.
        deviation: likewise.
        healthy: (n,) ascending scores of healthy images that it didn't see.
    """

    weight: Tensor
    chosen: Tensor
    mean: Tensor
    deviation: Tensor
    healthy: Tensor

    def __init__(
        self, name: str, method: Method, side: int, chain: Sequence[str], reduction: str
    ) -> None:
        super().__init__()
        self.name, self.side, self.chain, self.usual = name, side, tuple(chain), reduction
        self.method = method
        for key, value in {"weight": 1.0, "mean": 0.0, "deviation": 1.0}.items():
            self.register_buffer(key, torch.tensor(value))
        self.register_buffer("chosen", torch.tensor(0))
        self.register_buffer("healthy", torch.zeros(0, dtype=torch.float64))

    @property
    def id(self) -> str:
        """Id of the method."""
        return self.name.partition(":")[0]

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of its image scores, the usual one first."""
        return (self.usual, *(name for name in SCORES if name != self.usual))

    def looks(self, batch: Batch, method: Method | None = None) -> list[Look]:
        """Return what the method, or a trial of it, sees in each image."""
        method = self.method if method is None else method
        batch = resized(batch, self.side)
        found = method.maps(batch)
        inside = batch.foreground[:, 0].cpu().numpy()
        images = batch.image.detach().cpu().numpy()
        if found.map is None:
            maps = np.zeros(inside.shape, np.float32)
        else:
            maps = scaled(found.map.detach().float(), self.side)[:, 0].cpu().numpy()
        own = [None] * len(maps) if found.score is None else found.score.double().cpu().tolist()
        return [
            Look(apply_chain(self.chain, m, f, image) if found.map is not None else m, f, score)
            for m, f, image, score in zip(maps, inside, images, own, strict=True)
        ]

    def score(self, look: Look, name: str, places: Places | None) -> float:
        """Return an image score; the usual one is the method's own where it gives one."""
        if name == self.usual and look.own is not None:
            return look.own
        return Reduction.parse(name)(look.anomaly, look.inside, places)

    def take(self, name: str, healthy: np.ndarray, weight: float) -> None:
        """Take an image score, with the scores of healthy images by it, and a weight."""
        self.chosen.fill_(self.scores.index(name))
        self.healthy = torch.from_numpy(np.sort(healthy)).to(self.mean.device)
        self.weight.fill_(weight)

    @property
    def places(self) -> Places | None:
        """Healthy mean and deviation at each place, or None."""
        if not self.mean.ndim:
            return None
        return Places(self.mean.cpu().numpy(), self.deviation.cpu().numpy())

    def judge(self, looks: Sequence[Look]) -> tuple[np.ndarray, list[float]]:
        """Return surprises (n, *grid) and the scores as normal quantiles of healthy ones."""
        mean, deviation = self.mean.cpu().numpy(), self.deviation.cpu().numpy()
        surprises = np.stack([(one.anomaly - mean) / deviation for one in looks])
        name, places = self.scores[int(self.chosen)], self.places
        scores = np.array([self.score(one, name, places) for one in looks])
        return surprises, self.place(scores).tolist()

    def place(self, scores: np.ndarray) -> np.ndarray:
        """Return scores (n,) as normal quantiles of healthy ones."""
        return quantiles(scores, self.healthy.cpu().numpy())


def levels(looks: Sequence[Look]) -> tuple[Tensor, Tensor]:
    """Return healthy mean and deviation over all places alike."""
    values = np.concatenate([one.anomaly[one.inside] for one in looks]).astype(np.float64)
    if not values.size:
        values = np.concatenate([one.anomaly.ravel() for one in looks]).astype(np.float64)
    deviation = max(float(values.std()), float(np.finfo(np.float32).tiny))
    return torch.tensor(float(values.mean())), torch.tensor(deviation)


def quantiles(scores: np.ndarray, healthy: np.ndarray) -> np.ndarray:
    """Return scores (n,) as the normal quantiles of their ranks among healthy ones.

    Between two healthy scores it is linear. Beyond them it goes on with the logarithm of the
    distance in healthy deviations, so that it keeps the order of scores and one member can't drown
    out the others.

    Args:
        scores: (n,) to place.
        healthy: (k,) ascending.
    """
    k = len(healthy)
    if k < 2:
        return np.arcsinh(scores - healthy[0]) if k else np.asarray(scores, np.float64)
    # Equal scores have no deviation: then a millionth of their size stands for it.
    unit = max(float(healthy.std(ddof=1)), 1e-6 * max(1.0, float(np.abs(healthy).max())))
    at = ndtri((np.arange(k) + 0.5) / k)
    above = np.maximum(scores - healthy[-1], 0) / unit
    below = np.maximum(healthy[0] - scores, 0) / unit
    return np.asarray(np.interp(scores, healthy, at) + np.log1p(above) - np.log1p(below))
