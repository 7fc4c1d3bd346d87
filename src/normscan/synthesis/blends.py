"""How artificial anomalies join their hosts: each gives the new image and how foreign it is.

A blend sees the scene and what the donor gives; what it returns outside the mask doesn't count.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from normscan.synthesis.anomalies import shuffled
from normscan.synthesis.draws import (
    between,
    erlang,
    grid,
    on_edge,
    read_at,
    signs,
    spread_out,
)
from normscan.synthesis.placement import Scene
from normscan.synthesis.poisson import guidance, solve_poisson
from normscan.synthesis.shapes import Affine

Range = tuple[float, float]

Blend = Callable[[Scene, Tensor], tuple[Tensor, Tensor]]
"""To the image (n, C, *spatial) and the share of the donor (n, 1, 1, ...)."""

Way = Literal["push", "pull", "mass"]


def _share(scene: Scene, low: float, high: float) -> Tensor:
    return spread_out(between(scene.rng, (len(scene.x), 1), low, high), len(scene.spatial)).to(
        scene.x
    )


def _whole(scene: Scene) -> Tensor:
    return scene.x.new_ones(len(scene.x), 1, *[1] * len(scene.spatial))


def spread(scene: Scene) -> Tensor:
    """Standard deviation of each host's anatomy, (n, C, 1, ...); of the image where there is none."""
    weight = scene.objects.to(scene.x)
    weight = torch.where(weight.flatten(1).any(1).reshape(-1, *[1] * (weight.ndim - 1)), weight, 1)
    axes = tuple(range(2, weight.ndim))
    count = weight.sum(axes, keepdim=True)
    mean = (scene.x * weight).sum(axes, keepdim=True) / count
    variance = ((scene.x - mean).square() * weight).sum(axes, keepdim=True) / count
    return variance.sqrt().clamp_min(1e-6)


def clipped(image: Tensor, like: Tensor) -> Tensor:
    """An image within the range of another one, channel by channel."""
    axes = tuple(range(2, like.ndim))
    return torch.minimum(
        torch.maximum(image, like.amin(axes, keepdim=True)), like.amax(axes, keepdim=True)
    )


def paste(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """The donor itself (CutPaste)."""
    return s, _whole(scene)


def convex(share: Range = (0.05, 0.95)) -> Blend:
    """(1 - a) x + a s with a uniform (FPI)."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        a = _share(scene, *share)
        return (1 - a) * scene.x + a * s, a

    return blend


def graded(steps: int = 4) -> Blend:
    """(1 - a) x + a s with a one of 1 / steps, ..., 1 (FPI's classes)."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        a = (scene.rng.integers(0, steps, (len(s), 1)) + 1) / steps
        a = spread_out(a, len(scene.spatial)).to(s)
        return (1 - a) * scene.x + a * s, a

    return blend


def poisson(gradients: Literal["source", "mixed"] = "mixed") -> Blend:
    """The donor's gradients inside the host's border, or the stronger ones of both (NSA).

    Clipped to the host's range.
    """

    def rule(x: Tensor, s: Tensor) -> Tensor:
        return s if gradients == "source" else torch.where(x.abs() > s.abs(), x, s)

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        solved = solve_poisson(scene.x, guidance(scene.x, s, rule), scene.mask)
        return clipped(solved, scene.x), _whole(scene)

    return blend


def boxed_poisson(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """The stronger gradients in the mask, the host's in the rest of its box, solved on the box.

    So Baugh et al. (2023): what is foreign shines into the box's corners, and what changes there by
    more than 1e-3 belongs to the anomaly. Clipped to the host's range.
    """

    def stronger(x: Tensor, s: Tensor) -> Tensor:
        return torch.where(x.abs() >= s.abs(), x, s)

    box = torch.ones_like(scene.mask)
    for axis in range(2, box.ndim):
        others = tuple(a for a in range(2, box.ndim) if a != axis)
        line = scene.mask.sum(others, keepdim=True)
        before, after = line.cumsum(axis), line.flip(axis).cumsum(axis).flip(axis)
        box = box & (before > 0) & (after > 0)
    solved = solve_poisson(scene.x, guidance(scene.x, s, stronger, scene.mask), box)
    new = clipped(solved, scene.x)
    scene.mask = scene.mask | (box & ((new - scene.x).abs().mean(1, keepdim=True) > 1e-3))
    return new, _whole(scene)


def interpolated_gradients(share: Range = (0.05, 0.95)) -> Blend:
    """The stronger one of (1 - a) of the host's gradients and a of the donor's (PII)."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        a = _share(scene, *share)

        def rule(dx: Tensor, ds: Tensor) -> Tensor:
            own, foreign = (1 - a) * dx, a * ds
            return torch.where(own.abs() > foreign.abs(), own, foreign)

        solved = solve_poisson(scene.x, guidance(scene.x, s, rule), scene.mask)
        return clipped(solved, scene.x), a

    return blend


def infilled(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """What lies round the mask continued smoothly into it: a structure is missing."""
    return solve_poisson(scene.x, torch.zeros_like(scene.x), scene.mask), _whole(scene)


def emptied(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """The image's smallest value: a piece is missing."""
    axes = tuple(range(2, scene.x.ndim))
    return scene.x.amin(axes, keepdim=True).expand_as(scene.x), _whole(scene)


def translucent(strength: Range = (150 / 255, 254 / 255), blur: float = 14 / 256) -> Blend:
    """A paste with a blurred, never full opacity, on the anatomy only (AnatPaste).

    Args:
        strength: largest opacity, uniform.
        blur: largest standard deviation of its blur, a share of the image's side.
    """

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        a, n = _share(scene, *strength), len(s)
        sigma = blur * min(scene.spatial) * scene.rng.uniform((n, 1))[:, 0]
        opacity = a * softened(scene.mask.to(s), sigma) * scene.objects
        # The blur carries it beyond its outline: what it reaches belongs to the anomaly.
        scene.mask = opacity > 1e-3
        return scene.x + opacity * (s - scene.x), a

    return blend


def softened(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of images (n, C, *spatial), each with its own standard deviation in pixels."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        at = torch.arange(size, device=x.device, dtype=x.dtype)
        apart = (at[:, None] - at).square()
        kernel = torch.softmax(-apart / (2 * sigma.to(x)[:, None, None].square() + 1e-6), -1)
        x = torch.einsum("nij,nc...j->nc...i", kernel, x.movedim(axis, -1)).movedim(-1, axis)
    return x


# ---------------------------------------------------------------- no donor: intensity


def depth_ramp(mask: Tensor, width: Tensor) -> Tensor:
    """Distance from the edge of masks (n, 1, *spatial) over a width (n,) in pixels, at most 1."""
    from scipy.ndimage import distance_transform_edt

    depth = torch.stack(
        [torch.from_numpy(distance_transform_edt(m)) for m in mask[:, 0].cpu().numpy()]
    )
    depth = depth[:, None].to(mask.device).float()
    deepest = depth.flatten(1).amax(1).clamp_min(1)
    width = torch.minimum(width.to(depth), deepest)
    return (depth / width.reshape(-1, *[1] * (mask.ndim - 1))).clamp_max(1)


def shift(amount: Range = (1.0, 2.5), sign: Literal[-1, 0, 1] = 0, edge: float = 0.02) -> Blend:
    """Brighter or darker tissue with a soft edge, its texture kept.

    Args:
        amount: in standard deviations of the anatomy.
        sign: 1 brighter, -1 darker, 0 either.
        edge: width of the soft edge, a share of the image's side.
    """

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        size = _share(scene, *amount)
        if sign == 0:
            size = size * spread_out(signs(scene.rng, (len(s), 1)), len(scene.spatial)).to(s)
        width = torch.full((len(s),), max(1.0, edge * min(scene.spatial)))
        ramp = depth_ramp(scene.mask, width)
        return scene.x + (sign or 1) * size * spread(scene) * ramp, _whole(scene)

    return blend


def smooth_shift(scale: float = 0.2) -> Blend:
    """Intensity change +-(scale / 2 + Gamma(3, scale)) behind a ramp (Baugh et al., 2023).

    The ramp is (0.02 + Gamma(3, 0.01)) of the shortest side wide; the result keeps to the host's
    range.
    """

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        n, c = scene.x.shape[:2]
        size = (scale / 2 + erlang(scene.rng, (n, 1), 3, scale)) * signs(scene.rng, (n, c))
        width = min(scene.spatial) * (0.02 + erlang(scene.rng, (n,), 3, 0.01))
        change = spread_out(size, len(scene.spatial)).to(s) * depth_ramp(scene.mask, width)
        return clipped(scene.x + change, scene.x), _whole(scene)

    return blend


def levelled(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """The mean intensity of the place without its structure: an iso-intense lesion."""
    axes = tuple(range(2, scene.x.ndim))
    inside = scene.mask.to(scene.x)
    mean = (scene.x * inside).sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp_min(1)
    return scene.x + 0.85 * (mean - scene.x), _whole(scene)


def mottled(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of the place in random order: the same values, another texture."""
    return shuffled(scene.x, scene.mask, scene.rng), _whole(scene)


def noisy(amount: Range = (0.4, 1.0)) -> Blend:
    """Independent noise of so many standard deviations of the anatomy."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        noise = scene.rng.normal(scene.x.shape).to(s)
        return scene.x + _share(scene, *amount) * spread(scene) * noise, _whole(scene)

    return blend


def blurred(width: Range = (0.02, 0.05)) -> Blend:
    """Gaussian blur, its width a share of the image's side: sharpness is lost."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        share = between(scene.rng, (len(s), 1), *width)[:, 0]
        return softened(scene.x, (share * min(scene.spatial)).clamp_min(0.8)), _whole(scene)

    return blend


def coarse(factor: int = 4) -> Blend:
    """Blocks of so many pixels along each axis hold their mean: resolution is lost."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        pool = (
            torch.nn.functional.avg_pool2d if scene.x.ndim == 4 else torch.nn.functional.avg_pool3d
        )
        means = pool(scene.x, factor, ceil_mode=True, count_include_pad=False)
        for axis in range(2, scene.x.ndim):
            means = means.repeat_interleave(factor, axis).narrow(axis, 0, scene.x.shape[axis])
        return means, _whole(scene)

    return blend


def inclined(amount: Range = (1.5, 3.0)) -> Blend:
    """A ramp through the place, from darker to brighter, in standard deviations end to end."""

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        dims = len(scene.spatial)
        direction = scene.rng.normal((len(s), dims))
        direction = direction / direction.norm(dim=1, keepdim=True)
        offsets = grid(scene.spatial, s.device)[None] - spread_out(scene.centre.to(s), dims)
        along = (offsets * spread_out(direction.to(s), dims)).sum(1, keepdim=True)
        along = along * scene.mask
        reach = along.abs().flatten(1).amax(1).clamp_min(1).reshape(-1, *[1] * (dims + 1))
        return scene.x + _share(scene, *amount) / 2 * spread(scene) * along / reach, _whole(scene)

    return blend


# -------------------------------------------------------------- no donor: deformation


def radial(way: Way = "push", push: Range | None = None, core: float = 0.4) -> Blend:
    """Tissue moved along the rays from a point of the mask to its edge.

    A pixel at the distance r of R shows what lay at R (r / R)^k (``push``: everything moves out) or
    R (1 - (1 - r / R)^k) (``pull``). As in Baugh et al. (2023), k is such that tissue moves by a
    drawn number of pixels where it moves most, between 0.1 and 0.9 of what the mask allows.
    ``mass`` puts a core into the middle, in which nothing of the host shows, and squeezes what was
    there into the rest.

    Args:
        way: of the movement.
        push: pixels by which tissue moves; None for what the mask allows.
        core: share of the way to the edge that the core takes.
    """

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        outline, dims = scene.outline, len(scene.spatial)
        assert isinstance(outline, Affine), "only boxes and ellipsoids know their edge along a ray"
        start = _inner_point(scene) if way != "mass" else scene.centre
        at = spread_out(start.to(s), dims)
        offsets = grid(scene.spatial, s.device)[None] - at
        r = offsets.square().sum(1).sqrt()
        unit = offsets / r[:, None].clamp_min(1e-6)
        far = outline.way_out((start - scene.centre).to(s), unit)
        t = (r / far).clamp(0, 1)
        if way == "mass":
            t_source = ((t - core) / (1 - core)).clamp_min(0)
        else:
            k = spread_out(_exponent(scene, start, push, way)[:, None].to(s), dims)[:, 0]
            t_source = t**k if way == "push" else 1 - (1 - t) ** k
        moved = read_at(scene.x, at + (far * t_source)[:, None] * unit)
        if way == "mass":
            level = scene.x.amin() + (scene.x.amax() - scene.x.amin()) * _share(scene, 0.2, 1.0)
            soft = ((core - t) * far).clamp(-0.5, 0.5)[:, None] + 0.5
            moved = moved + soft * (level - moved)
        return moved, _whole(scene)

    return blend


def _inner_point(scene: Scene) -> Tensor:
    """A random pixel (n, dims) of each mask; the centre where it is empty."""
    share = scene.rng.uniform((len(scene.x), 1))
    points = scene.centre.clone()
    for i, mask in enumerate(scene.mask[:, 0]):
        inside = mask.nonzero()
        if len(inside):
            points[i] = inside[int(share[i, 0] * len(inside))].float().cpu()
    return points


def _exponent(scene: Scene, start: Tensor, push: Range | None, way: Way) -> Tensor:
    """The exponents (n,) of ``radial`` from how far tissue is to move."""
    dims = len(scene.spatial)
    edge = on_edge(scene.mask)
    apart = (grid(scene.spatial, edge.device)[None] - spread_out(start.to(edge.device), dims)).norm(
        dim=1, keepdim=True
    )
    count = edge.flatten(1).sum(1).clamp_min(1)
    mean = ((apart * edge).flatten(1).sum(1) / count).clamp_min(2).cpu()
    largest = (mean.square() / 2).sqrt()
    low, high = 0.1 * largest, 0.9 * largest
    if push is not None:
        low, high = torch.minimum(low.clamp_min(push[0]), high), high.clamp_max(push[1])
        high = torch.maximum(low, high)
    distance = low + (high - low) * scene.rng.uniform((len(mean), 1))[:, 0]
    inwards, outwards = (mean / 2 + sign * distance / math.sqrt(2) for sign in (-1, 1))
    inwards, outwards = inwards / mean, outwards / mean
    if way == "push":
        return inwards.log() / outwards.log()
    return (1 - outwards).log() / (1 - inwards).log()


def one_sided(amount: Range = (0.5, 0.8)) -> Blend:
    """One half of the anatomy stretched or squeezed along its axis of symmetry: the sides differ.

    A pixel at the share u of the way from the middle to the frame shows what lay at u^k, k or 1 / k
    uniform.
    """

    def blend(scene: Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        n, dims = len(s), len(scene.spatial)
        k = between(scene.rng, (n, 1), *amount)[:, 0]
        k = torch.where(scene.rng.uniform((n, 1))[:, 0] < 0.5, k, 1 / k)
        side = signs(scene.rng, (n, 1))[:, 0]
        points = grid(scene.spatial, s.device).repeat(n, *[1] * (dims + 1))
        for i in range(n):
            a, middle = _symmetry(scene.x[i : i + 1], scene.objects[i, 0])
            reach = max(middle, scene.spatial[a] - 1 - middle)
            u = (points[i, a] - middle) / reach
            moved = u.sign() * u.abs() ** float(k[i])
            points[i, a] = torch.where(u * side[i] > 0, moved, u) * reach + middle
        return read_at(scene.x, points), _whole(scene)

    return blend


def _symmetry(image: Tensor, objects: Tensor) -> tuple[int, float]:
    """The axis along which an image (1, C, *spatial) is most symmetric, and its middle there.

    Mirrored about the anatomy's centre.
    """
    points = grid(tuple(objects.shape), image.device)
    inside = objects if bool(objects.any()) else torch.ones_like(objects)
    centre = points[:, inside].mean(1)
    apart = []
    for axis in range(objects.ndim):
        mirrored = points.clone()
        mirrored[axis] = 2 * centre[axis] - mirrored[axis]
        apart.append(float((read_at(image, mirrored[None]) - image).abs().mean()))
    best = min(range(objects.ndim), key=apart.__getitem__)
    return best, float(centre[best])
