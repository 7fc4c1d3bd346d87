"""The anomalies by which candidates are judged: kinds that don't resemble each other, never too plain.

They are planted into prepared images, on the grid that every candidate gets its input from. Sizes are
log-uniform, and so is how strongly the pixels of the place change, whatever the kind: a kind whose
every anomaly is fainter than noise would say nothing of anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from normscan.rng import Rng, derive_seed
from normscan.synthesis import blends, donors, placement, shapes
from normscan.synthesis.corruption import Corruption

SIZES = (0.08, 0.35)  # diameters, shares of the image's side
CHANGES = (0.5, 3.0)  # root mean square over the place, in standard deviations of the anatomy
TRIES = 4  # places and sizes that are tried for one that can change so much
EACH = 3  # anomalies of a kind in an image
JUDGES = 48  # healthy images that judge, at most

Make = Callable[[float], Corruption]


@dataclass(frozen=True)
class Kind:
    """A kind of anomaly.

    Attributes:
        name: of it.
        group: what a method of the family ``synthesis`` may have trained on is ``copied``.
        make: takes a diameter, a share of the image's side.
        another: whether its donor is another image.
    """

    name: str
    group: Literal["intensity", "texture", "copied", "shape"]
    make: Make
    another: bool = False


def _blob(blend: blends.Blend) -> Make:
    return lambda size: Corruption(
        shapes.ellipses((size, size)), placement.overlapping(0.9), donors.host, blend
    )


def _ball(blend: blends.Blend) -> Make:
    # Deformed tissue moves less than its outline is wide: at the size of the others it is unseen.
    def make(size: float) -> Corruption:
        shape = shapes.hypershapes("ball", bounds=(1.5 * size, 1.5 * size))
        return Corruption(shape, placement.overlapping(0.7), donors.host, blend)

    return make


def _patch(donor: donors.Donor, blend: blends.Blend) -> Make:
    return lambda size: Corruption(
        shapes.ellipses((size, 1.5 * size)), placement.overlapping(0.7), donor, blend
    )


def _shift(sign: Literal[-1, 1]) -> Make:
    return _blob(blends.shift((2 * CHANGES[1],) * 2, sign=sign))


KINDS: tuple[Kind, ...] = (
    Kind("bright", "intensity", _shift(1)),
    Kind("dark", "intensity", _shift(-1)),
    Kind("iso_intense", "texture", _blob(blends.levelled)),
    Kind("texture", "texture", _blob(blends.mottled)),
    Kind("sharpness", "texture", _blob(blends.blurred((0.02, 0.05)))),
    Kind("foreign", "copied", _patch(donors.elsewhere(own=False), blends.paste), another=True),
    Kind("poisson", "copied", _patch(donors.resampled(), blends.poisson("source")), another=True),
    Kind("duplicated", "copied", _patch(donors.elsewhere(), blends.poisson("source"))),
    Kind("missing", "shape", _ball(blends.infilled)),
    Kind("deformed", "shape", _ball(blends.radial("push"))),
)


@dataclass(frozen=True)
class Twins:
    """Images with one anomaly each.

    Attributes:
        images: (m, C, *spatial).
        hosts: (m,) places of their healthy twins.
        kinds: (m,) places in ``KINDS``.
    """

    images: Tensor
    hosts: np.ndarray
    kinds: np.ndarray


def planted(images: Tensor, objects: Tensor, seed: int, wanted: int) -> Twins:
    """Plant anomalies into healthy images, every kind about as often.

    Args:
        images: (n, C, *spatial), scaled to about 0..1.
        objects: (n, 1, *spatial) bool, the anatomy.
        seed: of places, sizes, shapes and how strong they are.
        wanted: anomalies in all, about; at least two an image and at most ``EACH`` of each kind.

    Returns:
        The twins that differ from their hosts; none where nothing could be planted.
    """
    n, found, hosts, kinds = len(images), list[Tensor](), list[int](), list[int]()
    each = min(EACH * len(KINDS), max(2, -(-wanted // max(1, n))))
    for i in range(n):
        other = images[(i + 1 + n // 2) % n]
        for j in range(each):
            number = (i * each + j) % len(KINDS)
            twin = _twin(KINDS[number], images[i], other, objects[i], derive_seed(seed, i, j))
            if not torch.equal(twin, images[i]):
                found.append(twin)
                hosts.append(i)
                kinds.append(number)
    stacked = torch.stack(found) if found else images[:0]
    return Twins(stacked, np.array(hosts, int), np.array(kinds, int))


def _twin(kind: Kind, image: Tensor, other: Tensor, objects: Tensor, seed: int) -> Tensor:
    """Return the image with one anomaly, as strong as drawn, or as strong as any try can be."""
    wanted = _log_uniform(Rng(derive_seed(seed, "change")), CHANGES) * _spread(image, objects)
    best, reached = image, 0.0
    for number in range(TRIES):
        rng = Rng(derive_seed(seed, number))
        x, donor = image[None], (other if kind.another else image)[None]
        made = kind.make(_log_uniform(rng, SIZES))(x, donor, rng, objects[None])
        change = (made.image - x)[0]
        found = _size(change, made.region[0])
        share = min(1.0, wanted / max(found, 1e-12))
        if share * found > reached:
            best, reached = image + share * change, share * found
        if found >= wanted:
            break
    return best


def _size(change: Tensor, region: Tensor) -> float:
    """Root mean square of a change (C, *spatial) over the pixels of a region (1, *spatial)."""
    squares = change.square().mean(0)[region[0]]
    return float(squares.mean().sqrt()) if len(squares) else 0.0


def _spread(image: Tensor, objects: Tensor) -> float:
    """Standard deviation of the anatomy (1, *spatial) of an image (C, *spatial), over all channels."""
    inside = objects[0] if bool(objects.any()) else torch.ones_like(objects[0])
    return float(image[:, inside].std(dim=1, correction=0).square().mean().sqrt())


def _log_uniform(rng: Rng, ends: Sequence[float]) -> float:
    low, high = np.log(ends)
    return float(np.exp(low + (high - low) * float(rng.uniform((1,))[0])))
