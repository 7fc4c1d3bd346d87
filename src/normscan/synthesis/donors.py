"""What shows inside artificial anomalies: rules that give each host an image of its own size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from normscan.synthesis.draws import between, erlang, rotations, spread_out, taken_from
from normscan.synthesis.perlin import shuffled_tiles
from normscan.synthesis.placement import Scene, within_frame
from normscan.synthesis.shapes import Affine

Donor = Callable[[Scene], Tensor]


def host(scene: Scene) -> Tensor:
    """The host itself, for changes that need no donor."""
    return scene.x


def same_place(scene: Scene) -> Tensor:
    """The donor as it lies (FPI, PII, AutoSeg)."""
    return scene.donor


def transplanted(scene: Scene) -> Tensor:
    """What the placement chose in the donor (NSA)."""
    assert scene.source is not None, "a placement that chooses a place in the donor comes first"
    return taken_from(scene.donor, scene.source, scene.centre, scene.scale)


def turned(scene: Scene) -> Tensor:
    """The same, turned as the outline is (3D copy-paste): a straight piece becomes a turned one."""
    assert scene.source is not None and isinstance(scene.outline, Affine)
    return taken_from(scene.donor, scene.source, scene.centre, matrix=scene.outline.matrix)


def elsewhere(own: bool = True) -> Donor:
    """What lies at a random other place, of the host itself (CutPaste) or of the donor."""

    def give(scene: Scene) -> Tensor:
        source = within_frame(scene.rng, scene.outline, scene.spatial, 1)[:, 0]
        whole = scene.centre - scene.centre.floor()  # pixels are copied, not mixed
        image = scene.x if own else scene.donor
        return taken_from(image, source + whole, scene.centre)

    return give


def resampled(turn: float = 45, rate: float = 0.1, most: float = 0.8) -> Donor:
    """A random place of the donor, turned about every pair of axes and scaled (Baugh et al., 2023).

    Args:
        turn: largest angle in degrees.
        rate: the scale is 1 + Exp(rate) or its inverse.
        most: share of the donor that is taken at most.
    """

    def give(scene: Scene) -> Tensor:
        n, dims = len(scene.x), len(scene.spatial)
        matrix = rotations(scene.rng, n, dims, math.radians(turn))
        half = scene.outline.extent
        corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dims)))
        reach = torch.einsum("nij,nkj->nki", matrix, corners[None] * half[:, None]).abs().amax(1)
        sizes = torch.tensor(scene.spatial).float()
        change = 1 + erlang(scene.rng, (n, 1), 1, rate)
        scale = torch.where(scene.rng.uniform((n, 1)) < 0.5, change, 1 / change)
        scale = torch.minimum(scale, (most * sizes / (2 * reach)).amin(1, keepdim=True))
        room = (sizes / 2 - scale * reach).clamp_min(0)
        source = sizes / 2 + room * (2 * scene.rng.uniform((n, dims)) - 1)
        return taken_from(scene.donor, source, scene.centre, 1 / scale, matrix)

    return give


def jittered(donor: Donor, amount: float = 0.1) -> Donor:
    """Brightness and contrast of what a donor gives changed by up to an amount (colour jitter)."""

    def give(scene: Scene) -> Tensor:
        s = donor(scene)
        dims, n = len(scene.spatial), len(s)
        bright, contrast = (
            spread_out(between(scene.rng, (n, 1), 1 - amount, 1 + amount), dims).to(s)
            for _ in range(2)
        )
        s = s * bright
        mean = s.mean(tuple(range(1, s.ndim)), keepdim=True)
        return mean + contrast * (s - mean)

    return give


def tiles(scene: Scene) -> Tensor:
    """A texture: the donor's tiles in another order, half of them inverted (where none is given)."""
    if len(scene.spatial) == 2:
        return shuffled_tiles(scene.donor, scene.rng, partner=False)
    x = scene.donor
    for axis in range(2, x.ndim):
        # A volume is cut into eight slabs along each axis in turn, which change their places.
        slabs, rest = divmod(x.shape[axis], 8)
        if slabs == 0:
            continue
        order = scene.rng.uniform((len(x), 8)).argsort(1)
        index = (order[..., None] * slabs + torch.arange(slabs)).flatten(1)
        tail = torch.arange(8 * slabs, 8 * slabs + rest).repeat(len(x), 1)
        index = torch.cat([index, tail], 1).to(x.device)
        shape = [len(x), *[1] * (x.ndim - 1)]
        shape[axis] = index.shape[1]
        x = x.gather(axis, index.reshape(shape).expand(x.shape))
    flip = spread_out(scene.rng.uniform((len(x), 1)) < 0.5, len(scene.spatial)).to(x.device)
    axes = tuple(range(1, x.ndim))
    return torch.where(flip, x.amax(axes, keepdim=True) - x, x)


def partners(
    image: Tensor, objects: Tensor, position: Tensor, subject: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For each image of a batch another one of it: of another subject, nearest in position.

    Where the batch has one image only, itself mirrored.

    Args:
        image: (B, C, *spatial).
        objects: (B, 1, *spatial) bool.
        position: (B,) place of the slice in its subject.
        subject: (B,) numbers, or None where nobody knows them.

    Returns:
        The partners and their anatomy.
    """
    n = len(image)
    if n == 1:
        return image.flip(2), objects.flip(2)
    apart = (position[:, None] - position).abs().float()
    same = torch.eye(n, dtype=torch.bool, device=apart.device)
    if subject is not None:
        apart = apart + 10 * (subject[:, None] == subject)
    # Among equally near ones the next in the batch, which is in random order.
    turn = (torch.arange(n)[None] - torch.arange(n)[:, None]) % n
    apart = apart + 1e-4 * turn.to(apart) + 1e3 * same
    nearest = apart.argmin(1).to(image.device)
    return image[nearest], objects[nearest]
