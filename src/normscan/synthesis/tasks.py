"""Kinds of artificial anomalies by name: the library's instrument, and what its methods train on.

To add a kind: a line in ``_KINDS`` or ``_RECIPES``. Each works in two and three dimensions, is drawn
from a seed alone and says what it planted (``plant``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from normscan.errors import ArgumentError, nearest
from normscan.rng import Rng, derive_seed
from normscan.synthesis import blends, donors, labels, placement, shapes
from normscan.synthesis.corruption import Corrupt, Corrupted, Corruption, Mixture, records


@dataclass(frozen=True)
class Task:
    """A kind of artificial anomaly.

    Attributes:
        name: in ``task(name)`` and on the command line.
        group: intensity, texture, foreign, structure, deformation, or recipe for what a method uses.
        summary: one line.
        corrupt: the contract of ``normscan.synthesis.corruption``.
        donor: whether it takes something from ``another`` image or from the ``same``.
    """

    name: str
    group: Literal["intensity", "texture", "foreign", "structure", "deformation", "recipe"]
    summary: str
    corrupt: Corrupt
    donor: Literal["another", "same"] = "same"

    def plant(
        self, x: Tensor, seed: int, object_mask: Tensor, donor: Tensor | None = None,
        spacing: tuple[float, ...] = (),
    ) -> tuple[Corrupted, list[dict[str, Any]]]:  # fmt: skip
        """Corrupt images, each from its own place in the batch and the seed alone.

        Args:
            x: hosts, (n, C, *spatial), scaled to about 0..1.
            seed: of everything random.
            object_mask: (n, 1, *spatial) bool, the anatomy.
            donor: other images of the same shape; the hosts mirrored where a kind needs them and
                none are given.
            spacing: mm along each axis, for the sizes in the records.

        Returns:
            Images, labels and regions, and a record of each, with its seed.
        """
        seeds = [derive_seed(seed, self.name, i) for i in range(len(x))]
        other = x.flip(2) if donor is None else donor
        result = self.corrupt(x, other if self.donor == "another" else x, Rng(seeds), object_mask)
        rows = records(self.name, x, result, object_mask, spacing)
        return result, [{**row, "seed": s} for row, s in zip(rows, seeds, strict=True)]


def _blob(blend: blends.Blend, size: tuple[float, float] = (0.12, 0.3)) -> Corruption:
    """A change without donor in an ellipsoid on the anatomy."""
    return Corruption(shapes.ellipses(size), placement.overlapping(0.9), donors.host, blend)


def _hyper(blend: blends.Blend, kind: Literal["either", "box", "ball"] = "ball") -> Corruption:
    shape = shapes.hypershapes(kind, bounds=(0.15, 0.45))
    return Corruption(shape, placement.overlapping(0.7), donors.host, blend)


# ------------------------------------------------------- what the methods train on


def fpi(core: float = 0.5, classes: int | None = None, tolerance: float = 0.0) -> Corruption:
    """Foreign-patch interpolation; with ``classes`` shares of k / (classes - 1)."""
    if classes is None:
        blend, label = blends.convex(), labels.factor(tolerance)
    else:
        blend, label = blends.graded(classes - 1), labels.steps(classes, tolerance)
    return Corruption(
        shapes.squares(), placement.core(core), donors.same_place, blend, label, tolerance=tolerance
    )


def pii() -> Corruption:
    """Poisson image interpolation."""
    return Corruption(
        shapes.squares(), placement.core(0.8), donors.same_place, blends.interpolated_gradients(),
        labels.factor(1e-3),
    )  # fmt: skip


def nsa(
    label: Literal["logistic", "intensity", "binary"] = "logistic",
    gradients: Literal["mixed", "source"] = "mixed",
    patches: int = 3,
    logistic: tuple[float, float] = (0.5, 4),
) -> Corruption:
    """Natural synthetic anomalies, with the sizes and thresholds for chest radiographs."""
    rule = {
        "logistic": labels.difference(logistic=logistic),
        "intensity": labels.difference(),
        "binary": labels.binary(1 / 255),
    }[label]
    return Corruption(
        shapes.gamma_boxes(), placement.transplant(), donors.transplanted, blends.poisson(gradients),
        rule, most=patches,
    )  # fmt: skip


def cutpaste() -> Corruption:
    """A patch of the image itself at another place."""
    return Corruption(
        shapes.area_boxes(),
        placement.inside_frame,
        donors.jittered(donors.elsewhere()),
        blends.paste,
    )


def scar() -> Corruption:
    """A thin turned strip of the image itself at another place."""
    return Corruption(
        shapes.scars(), placement.inside_frame, donors.jittered(donors.elsewhere()), blends.paste
    )


def draem(clean: float = 0.0) -> Corruption:
    """A texture in the outlines of Perlin noise; the donor is the texture."""
    return Corruption(
        shapes.perlin(), placement.anywhere, donors.same_place, hosted(), labels.mask, clean=clean
    )


def hosted(most: float = 0.8) -> blends.Blend:
    """The donor with what shows of the host uniform from 0 to ``most`` (DRAEM)."""
    return blends.convex((1 - most, 1.0))


def anatpaste() -> Corruption:
    """A translucent patch of the image itself, on the anatomy."""
    half = shapes.area_boxes()

    def shape(n: int, spatial: tuple[int, ...], rng: Rng) -> shapes.Outline:
        box = half(n, spatial, rng)
        assert isinstance(box, shapes.Affine)
        # The opaque part is 10 pixels of 256 smaller on every side, and an ellipse half of the time.
        margin = 10 * min(spatial) / 256
        size = (box.half - margin).clamp_min(1)
        return shapes.Affine(size, box.matrix, rng.uniform((n, 1))[:, 0] < 0.5)

    return Corruption(
        shape, placement.on_object, donors.jittered(donors.elsewhere()), blends.translucent()
    )


def autoseg(size: tuple[float, float] = (0.1, 0.5), core: float | None = None) -> Corruption:
    """Foreign-patch interpolation in spline polygons."""
    place = placement.on_object if core is None else placement.core(core)
    return Corruption(
        shapes.splines(size), place, donors.same_place, blends.convex(), labels.factor(0.0),
        tolerance=0.0,
    )  # fmt: skip


def five_tasks(unit: float = 0.2, push: tuple[float, float] = (0.5, 5.0)) -> dict[str, Corruption]:
    """The five tasks of Baugh et al. (2023) by name, up to four anomalies each.

    Args:
        unit: deviation of the label and scale of the changes of intensity, in the image's unit.
        push: pixels by which tissue moves.
    """
    label = labels.flipped_gaussian(unit)

    def made(donor: donors.Donor, blend: blends.Blend) -> Corruption:
        return Corruption(
            shapes.hypershapes(), placement.overlapping(0.5), donor, blend, label, 4, "chain"
        )

    return {
        "poisson_intra": made(donors.resampled(), blends.boxed_poisson),
        "poisson_inter": made(donors.tiles, blends.boxed_poisson),
        "sink": made(donors.host, blends.radial("pull", push)),
        "source": made(donors.host, blends.radial("push", push)),
        "intensity": made(donors.host, blends.smooth_shift(unit)),
    }


def copy_paste(turn: float = 45, jitter: float = 0.2) -> Mixture:
    """A cuboid of the image itself at another place, half of them turned, half with a shift."""

    def part(turn: float) -> Corruption:
        return Corruption(
            shapes.cuboids(turn=turn), placement.displaced(), added(donors.turned, jitter),
            blends.paste,
        )  # fmt: skip

    return Mixture((part(0.0), part(turn)))


def added(donor: donors.Donor, amount: float) -> donors.Donor:
    """What a donor gives, half of the time with a constant U(-amount, amount) on its tissue."""

    def give(scene: placement.Scene) -> Tensor:
        s, n = donor(scene), len(scene.x)
        size = amount * (2 * scene.rng.uniform((n, 1)) - 1) * (scene.rng.uniform((n, 1)) < 0.5)
        shown = size.reshape(n, *[1] * (s.ndim - 1)).to(s)
        return torch.where(s > s.amin(), s + shown, s)

    return give


# ------------------------------------------------------------------------ the list


def _poisson_blob(donor: donors.Donor) -> Corruption:
    return Corruption(
        shapes.splines((0.25, 0.5)), placement.overlapping(0.7), donor, blends.poisson("mixed")
    )


_KINDS: tuple[tuple[Any, ...], ...] = (
    ("bright", "intensity", "a brighter blob with a soft edge", lambda: _blob(blends.shift(sign=1))),
    ("dark", "intensity", "a darker blob with a soft edge", lambda: _blob(blends.shift(sign=-1))),
    ("iso", "intensity", "a blob with the mean of its place and no structure",
     lambda: _blob(blends.levelled)),
    ("ramp", "intensity", "a ramp of intensity through a blob", lambda: _blob(blends.inclined())),
    ("texture", "texture", "the same values in another order", lambda: _blob(blends.mottled)),
    ("noise", "texture", "more noise than elsewhere", lambda: _blob(blends.noisy())),
    ("blur", "texture", "less sharp than elsewhere", lambda: _blob(blends.blurred())),
    ("resolution", "texture", "blocks of four pixels along each axis", lambda: _blob(blends.coarse())),
    ("foreign", "foreign", "a patch of another image laid over",
     lambda: Corruption(shapes.splines((0.25, 0.5)), placement.overlapping(0.7), donors.same_place,
                        blends.convex((0.5, 1.0))), "another"),
    ("foreign_poisson", "foreign", "a patch of another image, seamless",
     lambda: _poisson_blob(donors.resampled()), "another"),
    ("foreign_texture", "foreign", "a foreign texture in the outlines of Perlin noise",
     lambda: Corruption(shapes.perlin(), placement.anywhere, donors.tiles, hosted()), "another"),
    ("cutpaste", "structure", "a patch of the image itself elsewhere", cutpaste),
    ("scar", "structure", "a thin strip of the image itself elsewhere", scar),
    ("duplicated", "structure", "a structure a second time, seamless",
     lambda: _poisson_blob(donors.elsewhere())),
    ("missing", "structure", "a structure replaced by what lies round it",
     lambda: _hyper(blends.infilled)),
    ("erased", "structure", "a piece cut out", lambda: _hyper(blends.emptied, "box")),
    ("push", "deformation", "tissue pushed outwards", lambda: _hyper(blends.radial("push"))),
    ("pull", "deformation", "tissue pulled inwards", lambda: _hyper(blends.radial("pull"))),
    ("mass", "deformation", "a mass that pushes tissue aside", lambda: _hyper(blends.radial("mass"))),
    ("asymmetry", "deformation", "one side stretched or squeezed",
     lambda: Corruption(_everything, placement.anywhere, donors.host, blends.one_sided())),
)  # fmt: skip

_RECIPES: tuple[tuple[Any, ...], ...] = (
    ("fpi", "recipe", "foreign-patch interpolation (Tan 2020)", fpi, "another"),
    ("pii", "recipe", "Poisson image interpolation (Tan 2021)", pii, "another"),
    ("nsa", "recipe", "natural synthetic anomalies (Schlüter 2022)", nsa, "another"),
    ("draem", "recipe", "textures in Perlin outlines (Zavrtanik 2021)",
     lambda: Corruption(shapes.perlin(), placement.anywhere, donors.tiles, hosted(), labels.mask),
     "another"),
    ("anatpaste", "recipe", "a translucent patch on the anatomy (Sato 2023)", anatpaste),
    ("autoseg", "recipe", "interpolation in spline polygons (Meissen 2021)", autoseg, "another"),
    ("copy_paste_3d", "recipe", "a turned cuboid of the image itself (Cho 2021)", copy_paste),
    ("many_tasks", "recipe", "the five tasks of Baugh 2023, one an image",
     lambda: Mixture(tuple(five_tasks().values())), "another"),
)  # fmt: skip


def _everything(n: int, spatial: tuple[int, ...], rng: Rng) -> shapes.Outline:
    return shapes.Field(torch.ones(n, *spatial, dtype=torch.bool))


def _built(
    name: str, group: Any, summary: str, make: Callable[[], Corrupt], donor: Any = "same"
) -> Task:
    return Task(name, group, summary, make(), donor)


TASKS: dict[str, Task] = {row[0]: _built(*row) for row in (*_KINDS, *_RECIPES)}


def task(name: str) -> Task:
    """Return a task.

    Raises:
        ArgumentError: no such task; names the nearest one.
    """
    if name not in TASKS:
        raise ArgumentError(
            f"there is no task '{name}'.{nearest(name, TASKS)} `normscan tasks` lists them all."
        )
    return TASKS[name]
