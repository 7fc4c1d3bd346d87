"""The anomalies by which candidates are judged: kinds that don't resemble each other, never too plain.

They are planted into prepared images, on the grid that every candidate gets its input from. Sizes and
strengths are log-uniform, so that most are small and faint.
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
STRENGTHS = (0.25, 1.0)  # share of the change that is shown
JUDGES = 48  # healthy images that judge, at most
CONTRAST = 4.0  # standard deviations of the anatomy at full strength

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
        shapes.splines((size, 1.5 * size)), placement.overlapping(0.7), donor, blend
    )


def _shift(sign: Literal[-1, 1]) -> Make:
    return _blob(blends.shift((CONTRAST, CONTRAST), sign=sign))


KINDS: tuple[Kind, ...] = (
    Kind("bright", "intensity", _shift(1)),
    Kind("dark", "intensity", _shift(-1)),
    Kind("iso_intense", "texture", _blob(blends.levelled)),
    Kind("texture", "texture", _blob(blends.mottled)),
    Kind("sharpness", "texture", _blob(blends.blurred((0.02, 0.05)))),
    Kind("foreign", "copied", _patch(donors.same_place, blends.paste), another=True),
    Kind("poisson", "copied", _patch(donors.resampled(), blends.poisson("mixed")), another=True),
    Kind("duplicated", "copied", _patch(donors.elsewhere(), blends.poisson("mixed"))),
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
        seed: of places, sizes, strengths and shapes.
        wanted: anomalies in all, about; at least two an image and at most one of each kind.

    Returns:
        The twins that differ from their hosts; none where nothing could be planted.
    """
    n, found, hosts, kinds = len(images), list[Tensor](), list[int](), list[int]()
    each = min(len(KINDS), max(2, -(-wanted // max(1, n))))
    for i in range(n):
        other = images[(i + 1 + n // 2) % n]
        for number in ((i * each + j) % len(KINDS) for j in range(each)):
            twin = _twin(KINDS[number], images[i], other, objects[i], derive_seed(seed, i, number))
            if not torch.equal(twin, images[i]):
                found.append(twin)
                hosts.append(i)
                kinds.append(number)
    stacked = torch.stack(found) if found else images[:0]
    return Twins(stacked, np.array(hosts, int), np.array(kinds, int))


def _twin(kind: Kind, image: Tensor, other: Tensor, objects: Tensor, seed: int) -> Tensor:
    rng = Rng(seed)
    low_size, low_strength = _log_uniform(rng, SIZES), _log_uniform(rng, STRENGTHS)
    x = image[None]
    donor = other[None] if kind.another else x
    changed = kind.make(low_size)(x, donor, rng, objects[None]).image
    return (x + low_strength * (changed - x))[0]


def _log_uniform(rng: Rng, ends: Sequence[float]) -> float:
    low, high = np.log(ends)
    return float(np.exp(low + (high - low) * float(rng.uniform((1,))[0])))
