"""One contract for all artificial anomalies: a shape, a place, a donor, a blend and a label.

``corrupt(x, donor, rng, object_mask)`` gives the changed image, what a network shall say of it, and
where it changed. It is independent of every method, and every draw comes from the given source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from normscan.rng import Rng
from normscan.synthesis.blends import Blend
from normscan.synthesis.donors import Donor
from normscan.synthesis.draws import spread_out
from normscan.synthesis.labels import Label, binary, changed
from normscan.synthesis.placement import Placement, Scene
from normscan.synthesis.shapes import Shape


class Corrupted(NamedTuple):
    """What a corruption gives.

    Attributes:
        image: (n, C, *spatial).
        label: (n, 1, *spatial) float, what a network is to say.
        region: (n, 1, *spatial) bool, the pixels that changed.
    """

    image: Tensor
    label: Tensor
    region: Tensor


Corrupt = Callable[[Tensor, Tensor, Rng, Tensor], Corrupted]


CHANGED = binary()


@dataclass(frozen=True)
class Corruption:
    """Artificial anomalies made of five choices.

    Attributes:
        shape: of the mask.
        place: where it goes.
        donor: what shows in it.
        blend: how it joins the host.
        label: what a network is to say.
        most: anomalies in an image at most.
        more: whether each further one has probability 0.5 by itself (``coins``) or only after the
            one before (``chain``).
        clean: share of the images that stay as they are.
        tolerance: of a change.
    """

    shape: Shape
    place: Placement
    donor: Donor
    blend: Blend
    label: Label = CHANGED
    most: int = 1
    more: Literal["coins", "chain"] = "coins"
    clean: float = 0.0
    tolerance: float = 1e-3

    @torch.no_grad()
    def __call__(
        self,
        x: Tensor,
        donor: Tensor,
        rng: Rng,
        object_mask: Tensor,
        donor_mask: Tensor | None = None,
    ) -> Corrupted:
        """Corrupt images.

        Args:
            x: hosts, (n, C, *spatial), 2D or 3D; they stay as they are.
            donor: other images of the same shape, or ``x`` itself.
            rng: source of randomness.
            object_mask: (n, 1, *spatial) bool, the anatomy.
            donor_mask: the same of the donors; ``object_mask`` by default.
        """
        n, dims = len(x), x.ndim - 2
        donor_mask = object_mask if donor_mask is None else donor_mask
        spatial = tuple(x.shape[2:])
        y, union = x, torch.zeros_like(object_mask)
        going = rng.uniform((n, 1)) >= self.clean
        share = x.new_zeros(n, 1, *[1] * dims)
        for number in range(self.most):
            if number:
                coin = rng.uniform((n, 1)) < 0.5
                going = going & coin if self.more == "chain" else going
            on = going & (coin if number and self.more == "coins" else torch.ones_like(going))
            outline = self.shape(n, spatial, rng)
            scene = Scene(y, donor, object_mask, donor_mask, rng, outline)
            self.place(scene)
            scene.mask = scene.mask & spread_out(on, dims).to(x.device)
            new, part = self.blend(scene, self.donor(scene))
            y = torch.where(scene.mask, new, y)
            union = union | scene.mask
            share = torch.where(scene.mask.flatten(1).any(1).reshape(share.shape), part, share)
        return Corrupted(y, self.label(x, y, union, share), changed(x, y, union, self.tolerance))


@dataclass(frozen=True)
class Mixture:
    """One of several corruptions for each image, with equal probability.

    Attributes:
        parts: the corruptions.
        clean: share of the images that stay as they are.
    """

    parts: tuple[Corrupt, ...]
    clean: float = 0.0

    def __call__(
        self, x: Tensor, donor: Tensor, rng: Rng, object_mask: Tensor, *more: Tensor
    ) -> Corrupted:
        """Corrupt images, see ``Corruption``."""
        n = len(x)
        which = rng.integers(0, len(self.parts), (n, 1))[:, 0]
        which[rng.uniform((n, 1))[:, 0] < self.clean] = len(self.parts)
        result = Corrupted(
            x.clone(), torch.zeros_like(object_mask, dtype=x.dtype), torch.zeros_like(object_mask)
        )
        for number, part in enumerate(self.parts):
            rows = (which == number).to(x.device)
            if rng.shared and bool(rows.any()):
                inputs = [t[rows] for t in (object_mask, *more)]
                made = part(x[rows], donor[rows], rng, *inputs)  # type: ignore[call-arg]
                for whole, new in zip(result, made, strict=True):
                    whole[rows] = new
            elif not rng.shared:  # samples have sources of their own, from which each part draws
                made = part(x, donor, rng, object_mask, *more)  # type: ignore[call-arg]
                for whole, new in zip(result, made, strict=True):
                    whole[rows] = new[rows]
        return result


def records(
    kind: str, x: Tensor, result: Corrupted, object_mask: Tensor, spacing: tuple[float, ...] = ()
) -> list[dict[str, Any]]:
    """Say of each image what was planted: kind, size, contrast and place, as measured afterwards.

    Args:
        kind: name of the task.
        x: hosts, (n, C, *spatial).
        result: of a corruption of them.
        object_mask: (n, 1, *spatial) bool.
        spacing: mm along each axis; 1 by default.

    Returns:
        For each image: kind; ``size`` changed pixels in mm2 or mm3 and ``share`` of the anatomy;
        ``contrast`` mean change and ``strength`` mean absolute change there, in standard deviations
        of the anatomy; ``place``, their centre in pixels, empty where nothing changed; ``label``,
        the largest one.
    """
    unit = 1.0
    for step in spacing:
        unit *= step
    rows = []
    for before, after, label, region, objects in zip(x, *result, object_mask, strict=True):
        where, inside = region[0], objects[0]
        count = int(where.sum())
        values = before[:, inside if bool(inside.any()) else torch.ones_like(inside)]
        spread = values.std(1, correction=0).clamp_min(1e-6)[:, None]
        change = (after - before)[:, where] / spread
        place = where.nonzero().float().mean(0) if count else torch.zeros(0)
        rows.append(
            {
                "kind": kind,
                "size": round(count * unit, 3),
                "share": round(float((where & inside).sum() / inside.sum().clamp_min(1)), 5),
                "contrast": round(float(change.mean()), 4) if count else 0.0,
                "strength": round(float(change.abs().mean()), 4) if count else 0.0,
                "place": [round(float(p), 1) for p in place],
                "label": round(float(label.max()), 4),
            }
        )
    return rows
