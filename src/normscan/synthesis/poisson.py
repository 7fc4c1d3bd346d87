"""Poisson's equation on many masks at once, in floating point: the solver behind seamless patches.

Inside a mask 2 d f_p - sum_q f_q = b_p over the 2 d neighbours q of a pixel p; outside it f is the
image (Perez et al., SIGGRAPH 2003). Boxes are solved exactly with sine transforms, other masks by
conjugate gradients that multigrid preconditions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]

_SWEEPS, _DAMPING = 2, 0.8  # of the smoother
_COARSEST = 3  # pixels along the shortest axis below which no coarser grid follows


def inner(mask: Tensor) -> Tensor:
    """A mask (B, 1, *spatial) without the frame of the image, whose pixels lack a neighbour."""
    result = torch.zeros_like(mask)
    middle = (slice(None), slice(None), *[slice(1, -1)] * (mask.ndim - 2))
    result[middle] = mask[middle]
    return result


def _neighbours(x: Tensor) -> Tensor:
    """Sum of the neighbours along all spatial axes, 0 beyond the frame."""
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        n = x.shape[axis]
        total.narrow(axis, 1, n - 1).add_(x.narrow(axis, 0, n - 1))
        total.narrow(axis, 0, n - 1).add_(x.narrow(axis, 1, n - 1))
    return total


def guidance(host: Tensor, donor: Tensor, rule: Rule, mask: Tensor | None = None) -> Tensor:
    """Right-hand side b of a guidance field that is chosen for each pair of neighbours.

    Args:
        host: x, (B, C, *spatial).
        donor: s, of the same shape.
        rule: differences x_p - x_q and s_p - s_q to the wanted f_p - f_q; odd in both.
        mask: (B, 1, *spatial) bool; a pair whose first pixel lies outside keeps the host's
            difference. None for the rule everywhere.

    Returns:
        (B, C, *spatial), the wanted differences summed over the neighbours.
    """
    total = torch.zeros_like(host)
    for axis in range(2, host.ndim):
        n = host.shape[axis]
        # What p wants of q is the negative of what q wants of p.
        own = host.diff(dim=axis)
        wanted = rule(own, donor.diff(dim=axis))
        if mask is not None:
            wanted = torch.where(mask.narrow(axis, 0, n - 1), wanted, own)
        total.narrow(axis, 1, n - 1).add_(wanted)
        total.narrow(axis, 0, n - 1).sub_(wanted)
    return total


def solve_poisson(
    image: Tensor, guide: Tensor, mask: Tensor, tolerance: float = 1e-5, most: int = 60
) -> Tensor:
    """Solve Poisson's equation inside each mask, with the image as its border.

    Args:
        image: (B, C, *spatial), 2D or 3D; its values outside the mask are kept.
        guide: b, of the same shape; 0 gives the smoothest filling.
        mask: (B, 1, *spatial) bool; the frame of the image never belongs to it.
        tolerance: of the residual, relative to the right-hand side, for masks that are no boxes.
        most: iterations for these.

    Returns:
        (B, C, *spatial), of the type of the image.
    """
    mask = inner(mask)
    outside = torch.where(mask, 0, image)
    known = torch.where(mask, guide + _neighbours(outside), 0)
    result = image.clone()
    for places, box, full in _boxes(mask):
        cuts = {
            i: (slice(None), *(slice(a, a + n) for a, n in zip(low, box, strict=True)))
            for i, low in places.items()
        }
        b = torch.stack([known[i][cut] for i, cut in cuts.items()])
        inside = torch.stack([mask[i][cut] for i, cut in cuts.items()])
        u = _solve_boxes(b) if full else _solve_masks(b, inside, tolerance, most)
        for (i, cut), values, where in zip(cuts.items(), u, inside, strict=True):
            result[i][cut] = torch.where(where, values, result[i][cut])
    return result


def _boxes(mask: Tensor) -> list[tuple[dict[int, list[int]], list[int], bool]]:
    """Samples by the box that holds their mask: first corners, its size, whether masks fill it.

    Full boxes of one size are solved together; all others share the size of the largest.
    """
    spatial = mask.shape[2:]
    full: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(dict)
    rest: dict[int, list[int]] = {}
    largest = [0] * len(spatial)
    counts = mask.flatten(1).sum(1).tolist()
    ends = []
    for axis in range(len(spatial)):
        others = [a + 1 for a in range(len(spatial)) if a != axis]
        line = mask[:, 0].any(dim=others[-1]) if len(others) == 1 else mask[:, 0].amax(others)
        at = torch.arange(spatial[axis], device=mask.device)
        first = torch.where(line, at, spatial[axis]).amin(1)
        last = torch.where(line, at, -1).amax(1)
        ends.append((first.tolist(), last.tolist()))
    for i, count in enumerate(counts):
        if not count:
            continue
        low = [first[i] for first, _ in ends]
        size = [last[i] - first[i] + 1 for first, last in ends]
        volume = 1
        for n in size:
            volume *= n
        if volume == count:
            full[tuple(size)][i] = low
        else:
            rest[i] = low
            largest = [max(a, b) for a, b in zip(largest, size, strict=True)]
    for low in rest.values():
        low[:] = [min(a, n - size) for a, n, size in zip(low, spatial, largest, strict=True)]
    groups = [(places, list(size), True) for size, places in full.items()]
    return [*groups, (rest, largest, False)] if rest else groups


# ------------------------------------------------------------------------ boxes


def sine_transform(x: Tensor, axis: int) -> Tensor:
    """Discrete sine transform of the first kind, sum_j x_j sin(pi j k / (n + 1)), along an axis."""
    x = x.movedim(axis, -1)
    zero = torch.zeros_like(x[..., :1])
    odd = torch.cat([zero, x, zero, -x.flip(-1)], -1)
    n = x.shape[-1]
    return (-0.5 * torch.fft.rfft(odd).imag[..., 1 : n + 1]).movedim(-1, axis)


def _solve_boxes(b: Tensor) -> Tensor:
    """Exact solution in boxes (B, C, *box) with 0 around them: sines are its eigenvectors."""
    eigen = torch.zeros((), dtype=b.dtype, device=b.device)
    scale = 1.0
    x = b
    for axis in range(2, b.ndim):
        n = b.shape[axis]
        k = torch.arange(1, n + 1, dtype=b.dtype, device=b.device)
        values = 4 * torch.sin(torch.pi * k / (2 * (n + 1))).square()
        eigen = eigen + values.reshape([-1 if a == axis else 1 for a in range(2, b.ndim)])
        scale *= 2 / (n + 1)
        x = sine_transform(x, axis)
    x = scale * x / eigen
    for axis in range(2, b.ndim):
        x = sine_transform(x, axis)
    return x


# -------------------------------------------------------------- irregular masks


def _solve_masks(b: Tensor, mask: Tensor, tolerance: float, most: int) -> Tensor:
    """Conjugate gradients over the pixels of each mask; every channel is a system of its own."""
    masks = [mask.to(b)]
    while min(masks[-1].shape[2:]) > _COARSEST:
        masks.append(masks[-1][(slice(None), slice(None), *[slice(None, None, 2)] * (b.ndim - 2))])
    axes = tuple(range(2, b.ndim))

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (x * y).sum(axes, keepdim=True)

    u, r = torch.zeros_like(b), b
    goal = tolerance**2 * dot(b, b)
    z = _cycle(r, masks, 0)
    p, rz = z, dot(r, z)
    tiny = torch.finfo(b.dtype).tiny
    for _ in range(most):
        if bool((dot(r, r) <= goal).all()):
            break
        ap = _laplacian(p, masks[0])
        step = rz / dot(p, ap).clamp_min(tiny)
        u, r = u + step * p, r - step * ap
        z = _cycle(r, masks, 0)
        new = dot(r, z)
        p, rz = z + new / rz.clamp_min(tiny) * p, new
    return u


def _laplacian(u: Tensor, mask: Tensor) -> Tensor:
    """(2 d u_p - sum_q u_q) on the mask, of a u that is 0 outside it."""
    return (2 * (u.ndim - 2) * u - _neighbours(u)) * mask


def _cycle(r: Tensor, masks: list[Tensor], level: int) -> Tensor:
    """A symmetric V-cycle for the correction of a residual."""
    mask, diagonal = masks[level], 2.0 * (r.ndim - 2)
    weight = _DAMPING / diagonal
    deepest = level + 1 == len(masks)
    u = weight * r
    for _ in range((4 * _SWEEPS if deepest else _SWEEPS) - 1):
        u = u + weight * (r - _laplacian(u, mask))
    if deepest:
        return u
    coarse = _restricted(r - _laplacian(u, mask)) * masks[level + 1]
    u = u + _prolonged(_cycle(coarse, masks, level + 1), mask.shape[2:]) * mask
    for _ in range(_SWEEPS):
        u = u + weight * (r - _laplacian(u, mask))
    return u


def _restricted(r: Tensor) -> Tensor:
    """Every second pixel with half of its neighbours along each axis, for a grid twice as wide.

    The sum over an axis is twice its mean; the operator of a grid twice as wide counts four times.
    """
    for axis in range(2, r.ndim):
        n = r.shape[axis]
        out = r.index_select(axis, torch.arange(0, n, 2, device=r.device))
        odd = r.index_select(axis, torch.arange(1, n, 2, device=r.device))
        out.narrow(axis, 0, odd.shape[axis]).add_(0.5 * odd)
        kept = min(odd.shape[axis], out.shape[axis] - 1)
        out.narrow(axis, 1, kept).add_(0.5 * odd.narrow(axis, 0, kept))
        r = out
    return r * 2.0 ** (2 - (r.ndim - 2))


def _prolonged(u: Tensor, spatial: torch.Size) -> Tensor:
    """Linear interpolation to twice the grid, the transpose of ``_restricted`` up to its factor."""
    for axis in range(2, u.ndim):
        n = spatial[axis - 2]
        shape = list(u.shape)
        shape[axis] = n
        out = u.new_zeros(shape)
        out.index_copy_(axis, torch.arange(0, n, 2, device=u.device), u)
        odd = 0.5 * u.narrow(axis, 0, n // 2)
        following = min(n // 2, u.shape[axis] - 1)
        odd = odd.clone()
        odd.narrow(axis, 0, following).add_(0.5 * u.narrow(axis, 1, following))
        out.index_copy_(axis, torch.arange(1, n, 2, device=u.device), odd)
        u = out
    return u
