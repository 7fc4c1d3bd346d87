"""Where artificial anomalies go: rules that set the centre of each outline.

Rules that reject places draw all their tries beforehand, so that a sample's place doesn't depend on
its batch mates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.synthesis.anomalies import random_places
from normscan.synthesis.draws import grid, spread_out, taken_from
from normscan.synthesis.shapes import Affine, Outline

_AT_ONCE = 2**17  # pixels of candidates that are looked at together


@dataclass
class Scene:
    """What a placement, a donor and a blend see of some images, and what they leave for each other.

    Attributes:
        x: hosts, (n, C, *spatial).
        donor: other images, of the same shape.
        objects: (n, 1, *spatial) bool, the anatomy of the hosts.
        donor_objects: the same of the donors.
        rng: source of randomness.
        outline: of the anomalies.
        centre: (n, dims) where they go.
        mask: (n, 1, *spatial) bool.
        found: (n,) bool; where no place was found nothing changes.
        source: (n, dims) places in the donors, where the placement chose them.
        scale: (n, 1) by which what is taken there is enlarged.
    """

    x: Tensor
    donor: Tensor
    objects: Tensor
    donor_objects: Tensor
    rng: Rng
    outline: Outline
    centre: Tensor = field(init=False)
    mask: Tensor = field(init=False)
    found: Tensor = field(init=False)
    source: Tensor | None = None
    scale: Tensor | None = None

    @property
    def spatial(self) -> tuple[int, ...]:
        """Size in pixels."""
        return tuple(self.x.shape[2:])

    def put(self, centre: Tensor, found: Tensor | None = None) -> None:
        """Lay the outlines round centres (n, dims)."""
        n = len(self.x)
        self.centre = centre
        self.found = torch.ones(n, dtype=torch.bool) if found is None else found
        laid = drawn(self.outline, centre, self.spatial, self.x.device)
        self.mask = laid & spread_out(self.found[:, None], len(self.spatial)).to(laid.device)


Placement = Callable[[Scene], None]


def drawn(
    outline: Outline, centre: Tensor, spatial: tuple[int, ...], device: torch.device
) -> Tensor:
    """Masks (n, 1, *spatial) of outlines round centres."""
    offsets = grid(spatial, device)[None] - spread_out(centre.to(device), len(spatial))
    return outline.inside(offsets)[:, None]


def _share(mask: Tensor, of: Tensor) -> Tensor:
    """Share of the pixels ``of`` that are in a mask, (n,)."""
    inside = (mask & of).flatten(1).sum(1)
    return (inside / of.flatten(1).sum(1).clamp_min(1)).cpu()


def anywhere(scene: Scene) -> None:
    """Leave areas that know their place where they are."""
    middle = torch.tensor(scene.spatial) / 2
    scene.put(middle.repeat(len(scene.x), 1))


def core(share: float = 0.8) -> Placement:
    """Centres in the central share of each axis, whole pixels (FPI)."""

    def put(scene: Scene) -> None:
        axes = []
        for size in scene.spatial:
            # Both ends are cut to whole pixels, as in the release; 0.2 / 2 is a bit below 0.1.
            first, end = (int((1 + sign * share) / 2 * size + 1e-9) for sign in (-1, 1))
            axes.append(scene.rng.integers(first, max(first + 1, end), (len(scene.x), 1)))
        scene.put(torch.cat(axes, 1).float())

    return put


def on_object(scene: Scene) -> None:
    """Centres on a random pixel of the anatomy; nothing is placed where there is none."""
    empty = ~scene.objects.flatten(1).any(1)
    some = scene.objects | spread_out(empty[:, None], len(scene.spatial))
    scene.put(random_places(some, scene.rng).float().cpu(), ~empty.cpu())


def within_frame(rng: Rng, outline: Outline, spatial: tuple[int, ...], tries: int) -> Tensor:
    """Centres (n, tries, dims), whole pixels, for which outlines lie inside the image if they can."""
    sizes, extent = torch.tensor(spatial).float(), outline.extent[:, None]
    low = torch.minimum(extent.ceil(), (sizes / 2).floor())
    high = torch.maximum((sizes - extent).floor(), low)
    drawn = rng.uniform((len(extent), tries, len(spatial)))
    return (low + drawn * (high - low + 1)).floor().minimum(high)


def inside_frame(scene: Scene) -> None:
    """Outlines inside the image (CutPaste)."""
    scene.put(within_frame(scene.rng, scene.outline, scene.spatial, 1)[:, 0])


def overlapping(share: float = 0.5, tries: int = 30) -> Placement:
    """Places where at least a share of the outline lies on the anatomy (Baugh et al., 2023).

    Where none of the tries does, nothing is placed; the release tries for ever.
    """

    def put(scene: Scene) -> None:
        candidates = within_frame(scene.rng, scene.outline, scene.spatial, tries)

        def accepted(centre: Tensor, rows: Tensor) -> Tensor:
            mask = drawn(_rows(scene.outline, rows), centre, scene.spatial, scene.x.device)
            return _share(scene.objects[rows], mask) >= share

        scene.put(*_first(candidates, accepted, math.prod(scene.spatial)))

    return put


def _rows(outline: Outline, rows: Tensor) -> Outline:
    """The outlines of some samples."""
    parts = {f.name: getattr(outline, f.name)[rows] for f in fields(outline)}  # type: ignore[arg-type]
    return replace(outline, **parts)  # type: ignore[type-var]


def _first(
    candidates: Tensor, accepted: Callable[[Tensor, Tensor], Tensor], pixels: int
) -> tuple[Tensor, Tensor]:
    """The first accepted one of candidates (n, tries, dims) of each sample, and whether there is one.

    Only samples that still look for a place are asked: centres and their numbers, several tries at
    once where images are small.
    """
    chosen = candidates[:, 0].clone()
    rest = torch.arange(len(candidates))
    for part in candidates.split(max(1, _AT_ONCE // (len(candidates) * pixels)), dim=1):
        tries = part.shape[1]
        good = accepted(part[rest].flatten(0, 1), rest.repeat_interleave(tries))
        good = good.reshape(len(rest), tries)
        some, first = good.any(1), good.int().argmax(1)
        chosen[rest[some]] = part[rest[some], first[some]]
        rest = rest[~some]
        if not len(rest):
            break
    found = torch.ones(len(candidates), dtype=torch.bool)
    found[rest] = False
    return chosen, found


def transplant(
    least_object: float = 0.7, overlap: float = 0.7, bounds: tuple[float, float] = (0.7, 1.3),
    spread: float = 0.5, longest: float = 0.4, tries: int = 40,
) -> Placement:  # fmt: skip
    """A place in the donor, a scale, and a place in the host, as NSA chooses them.

    More than ``least_object`` of what is taken is anatomy, and more than ``overlap`` of that
    anatomy lands on anatomy; where no place is found nothing changes. The mask keeps to the anatomy
    of both. The scale is normal round 1 within its bounds.

    Args:
        least_object: share of the patch.
        overlap: share of the patch's anatomy.
        bounds: of the scale.
        spread: standard deviation of the scale before it is clipped.
        longest: share of the host's axes that a scaled patch takes at most.
        tries: places tried in donor and host each.
    """

    def put(scene: Scene) -> None:
        n, taken = len(scene.x), scene.outline
        room = longest * torch.tensor(scene.spatial) / (2 * taken.extent)
        scene.scale = (1 + spread * scene.rng.normal((n, 1))).clamp(*bounds)
        scene.scale = torch.minimum(scene.scale, room.amin(1, keepdim=True))
        candidates = within_frame(scene.rng, taken, scene.spatial, tries)

        def on_donor(centre: Tensor, rows: Tensor) -> Tensor:
            mask = drawn(_rows(taken, rows), centre, scene.spatial, scene.x.device)
            return _share(scene.donor_objects[rows], mask) > least_object

        scene.source, some = _first(candidates, on_donor, math.prod(scene.spatial))
        assert isinstance(taken, Affine)
        scene.outline = taken.scaled(scene.scale)
        candidates = within_frame(scene.rng, scene.outline, scene.spatial, tries)

        def on_host(centre: Tensor, rows: Tensor) -> Tensor:
            mask = drawn(_rows(scene.outline, rows), centre, scene.spatial, scene.x.device)
            moved = mask & _moved_objects(scene, centre, rows)
            meets = _share(scene.objects[rows], moved) > overlap
            return (_share(moved, mask) > least_object) & meets

        centre, found = _first(candidates, on_host, math.prod(scene.spatial))
        scene.put(centre, found & some)
        scene.mask &= scene.objects | _moved_objects(scene, centre, torch.arange(n))

    return put


def _moved_objects(scene: Scene, centre: Tensor, rows: Tensor) -> Tensor:
    """The anatomy of some donors as it lies in their hosts."""
    assert scene.source is not None and scene.scale is not None
    objects = scene.donor_objects[rows].float()
    moved = taken_from(objects, scene.source[rows], centre, scene.scale[rows])
    return moved > 0.5


def displaced(share: float = 0.5, tries: int = 20, least_object: float = 0.3) -> Placement:
    """A place in the donor with enough anatomy, and one in the host that overlaps it by little.

    In one axis at least the two are apart by ``share`` of the outline's length (the 3D copy-paste).
    """

    def put(scene: Scene) -> None:
        outline = scene.outline
        candidates = within_frame(scene.rng, outline, scene.spatial, tries)

        def holds(centre: Tensor, rows: Tensor) -> Tensor:
            mask = drawn(_rows(outline, rows), centre, scene.spatial, scene.x.device)
            return _share(scene.donor_objects[rows], mask) >= least_object

        scene.source, some = _first(candidates, holds, math.prod(scene.spatial))
        candidates = within_frame(scene.rng, outline, scene.spatial, tries)

        def apart(centre: Tensor, rows: Tensor) -> Tensor:
            assert scene.source is not None
            away = (centre - scene.source[rows]).abs() / (2 * outline.extent[rows])
            return (away >= share).any(1)

        centre, found = _first(candidates, apart, math.prod(scene.spatial))
        scene.put(centre, some & found)

    return put
