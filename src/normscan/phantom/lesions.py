"""The lesions: one function per kind, each from a place in a brain to a `Lesion`.

To add a kind: a function here, its name in `config.KINDS`, its diameters and its intensities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normscan.phantom.anatomy import Anatomy, Placer
from normscan.phantom.atlas import CSF, GM, WM
from normscan.phantom.config import PhantomConfig
from normscan.phantom.contrast import LESION, MOTTLE, OPACITY, Appearance
from normscan.phantom.deform import MassEffect, grow_mass
from normscan.phantom.fields import SmoothField
from normscan.phantom.shapes import Part, Shape, Wedge, random_blob, ripple


@dataclass(frozen=True, eq=False)
class Lesion:
    """All lesions of one subject.

    Attributes:
        kind: one of `normscan.phantom.config.KINDS`.
        parts: layers, each drawn over the ones before it.
        gain: factor on the intensity change, drawn once per subject.
        mass: displacement of the healthy tissue, or None.
        properties: one table row per lesion: place, size and the like.
    """

    kind: str
    parts: tuple[Part, ...]
    gain: float
    mass: MassEffect | None
    properties: tuple[dict[str, Any], ...]

    def pushed(self, points: np.ndarray, contrast: float) -> np.ndarray:
        """Return where the tissue at points (N, 3) was before the mass effect, in mm.

        A contrast below 1 weakens the mass effect likewise, so that 0 is the healthy subject.
        """
        if self.mass is None or contrast == 0:
            return points
        return replace(self.mass, strength=self.mass.strength * min(contrast, 1.0))(points)

    def paint(
        self,
        points: np.ndarray,
        tissue: np.ndarray,
        signal: np.ndarray,
        look: Appearance,
        edge: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the signal (N,) with the lesion at full contrast, and the lesion fraction (N,).

        Args:
            points: (N, 3) mm.
            tissue: fractions (N, 3) of CSF, GM, WM.
            signal: healthy signal (N,), without gain and bias field.
            look: modality, and the texture that the lesion has as all solid tissue.
            edge: width in mm of the transition.
        """
        painted = signal
        total = np.zeros(len(points))
        for part in self.parts:
            fraction = part.fraction(points, tissue, edge)
            at = np.flatnonzero(fraction > 0)
            if len(at) == 0:
                continue
            mottled = 1.0 + MOTTLE[part.name] * part.mottle(points[at]) + look.texture(points[at])
            target = LESION[part.name][look.modality] * np.maximum(mottled, 0.2)
            painted = painted.copy()
            painted[at] += OPACITY[part.name] * fraction[at] * (target - painted[at])
            total = np.maximum(total, fraction)
        return signal + self.gain * (painted - signal), total


class _Maker:
    """What every kind needs: randomness, the anatomy, the settings, and parts of the right size."""

    def __init__(self, rng: np.random.Generator, placer: Placer, config: PhantomConfig) -> None:
        self.rng = rng
        self.placer = placer
        self.config = config
        self.edge = max(config.edge, config.spacing)

    @property
    def anatomy(self) -> Anatomy:
        return self.placer.anatomy

    def diameter(self, kind: str) -> float:
        return float(self.rng.uniform(*self.config.diameters(kind)))

    def part(self, name: str, shape: Shape, diameter: float, **settings: Any) -> Part:
        mottle = ripple(self.rng, shape.middle, 0.7 * diameter)
        return Part(name, shape, 0.0, mottle, **settings)

    def sized(
        self,
        part: Part,
        diameter: float,
        tissue_at: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> tuple[Part, float]:
        return part.sized(tissue_at or self.anatomy.tissue, diameter, self.edge)

    def blob(self, middle: np.ndarray, diameter: float, oblong: float = 0.15) -> Shape:
        return random_blob(self.rng, middle, diameter, self.config.irregularity, oblong)

    def lesion(
        self,
        kind: str,
        parts: list[Part],
        rows: list[dict[str, Any]],
        mass: MassEffect | None = None,
    ) -> Lesion:
        gain = float(self.rng.uniform(0.85, 1.1))
        return Lesion(kind, tuple(parts), gain, mass, tuple(rows))


def _row(middle: np.ndarray, diameter: float, volume: float, **more: float) -> dict[str, Any]:
    x, y, z = (round(float(m), 2) for m in middle)
    sizes = {"diameter_mm": diameter, "volume_mm3": volume, **more}
    return {"x_mm": x, "y_mm": y, "z_mm": z, **{k: round(float(v), 2) for k, v in sizes.items()}}


def wmh(rng: np.random.Generator, placer: Placer, config: PhantomConfig) -> Lesion | None:
    """Several small white-matter hyperintensities, most of them close to the lateral ventricles."""
    make = _Maker(rng, placer, config)
    count = int(rng.integers(config.wmh_count[0], config.wmh_count[1] + 1))
    parts: list[Part] = []
    rows: list[dict[str, Any]] = []
    taken: list[tuple[np.ndarray, float]] = []
    for index in range(count):
        diameter = make.diameter("wmh")
        plane = index % len(placer.planes) if placer.planes else None
        places = placer.places(rng, 0.25 * diameter, plane)
        weights = places.fractions[:, WM] ** 2 * np.exp(-places.ventricle_distance / 6.0)
        weights = weights * (places.depth > 8.0)
        for middle, other in taken:
            apart = np.linalg.norm(places.points - middle, axis=1)
            weights = weights * (apart > 0.6 * (diameter + other))
        chosen = places.choose(rng, weights)
        if chosen is None:
            continue
        middle = places.points[chosen]
        part = make.part(
            "wmh",
            make.blob(middle, diameter, 0.25),
            diameter,
            affinity=0.25 * diameter,
            softness=1.5,
        )
        part, volume = make.sized(part, diameter)
        parts.append(part)
        rows.append(_row(middle, diameter, volume))
        taken.append((middle, diameter))
    return make.lesion("wmh", parts, rows) if parts else None


def tumour(rng: np.random.Generator, placer: Placer, config: PhantomConfig) -> Lesion | None:
    """A mass: core, ring, and oedema that follows the white matter; it pushes the brain aside.

    The diameter is that of core, ring and oedema together, as they lie in the displaced tissue.
    """
    make = _Maker(rng, placer, config)
    diameter = make.diameter("tumour")
    core_diameter = float(rng.uniform(0.4, 0.6)) * diameter
    places = placer.places(rng, 0.12 * diameter)
    room = np.clip((places.depth - 0.6 * core_diameter) / (0.2 * diameter), 0.0, 1.0)
    cerebrum = ~((places.points[:, 2] < 2) & (places.points[:, 1] < -15))
    weights = room * cerebrum * (places.fractions[:, WM] + 0.2 * places.fractions[:, GM])
    chosen = places.choose(rng, weights)
    if chosen is None:
        return None
    middle = places.points[chosen]
    radius, mass, moved = 1.1 * diameter, None, 0.0
    if config.mass_effect > 0:
        mass, moved = grow_mass(middle, radius, config.mass_effect, make.anatomy.depth)

    def tissue_at(points: np.ndarray) -> np.ndarray:
        return make.anatomy.tissue(mass(points) if mass else points)

    outer = make.blob(middle, diameter, 0.2)
    oedema = make.part("oedema", outer, diameter, affinity=0.25 * diameter, softness=2.5)
    ring = make.part("ring", make.blob(middle, core_diameter), core_diameter, spares_fluid=False)
    oedema, volume = make.sized(oedema, diameter, tissue_at)
    ring, core_volume = make.sized(ring, core_diameter, tissue_at)
    width = max(0.1 * core_diameter, 1.5)
    core = make.part("core", ring.shape, core_diameter, spares_fluid=False)
    core = replace(core, threshold=ring.threshold - width)
    row = _row(
        middle, diameter, volume,
        core_diameter_mm=core_diameter, core_volume_mm3=core_volume, ring_mm=width,
        mass_effect_mm=moved,
        mass_radius_mm=radius if mass else 0.0,
    )  # fmt: skip
    return make.lesion("tumour", [oedema, ring, core], [row], mass)


def infarct(rng: np.random.Generator, placer: Placer, config: PhantomConfig) -> Lesion | None:
    """A wedge of cortex and the white matter under it, its base on the surface of the brain."""
    make = _Maker(rng, placer, config)
    diameter = make.diameter("infarct")
    places = placer.places(rng, 0.1 * diameter)
    shell = (places.depth > 2.0) & (places.depth < 8.0)
    # Not at the midline, where the shell of the template lies in the falx.
    weights = shell * places.fractions[:, GM] * (np.abs(places.points[:, 0]) > 15.0)
    chosen = places.choose(rng, weights)
    if chosen is None:
        return None
    surface = places.points[chosen]
    inner = np.array([0.3, 0.4, 1.0]) * surface + np.array([0.0, -10.0, rng.normal(0.0, 5.0)])
    axis = (surface - inner) / np.linalg.norm(surface - inner)
    half_angle = float(np.deg2rad(rng.uniform(28.0, 42.0)))
    # The length of the spherical sector that has the wanted volume.
    length = diameter * float((4.0 * (1.0 - np.cos(half_angle))) ** (-1 / 3))
    apex = surface - 0.85 * length * axis
    noise: SmoothField = ripple(rng, surface, diameter)
    shape = Wedge(apex, axis, length, half_angle, noise, 0.5 * config.irregularity * diameter)
    part, volume = make.sized(make.part("infarct", shape, diameter, softness=2.0), diameter)
    row = _row(shape.middle, diameter, volume, half_angle_deg=float(np.rad2deg(half_angle)))
    return make.lesion("infarct", [part], [row])


def bleed(rng: np.random.Generator, placer: Placer, config: PhantomConfig) -> Lesion | None:
    """A small mottled bleed with a thin dark rim, most often in the deep nuclei."""
    make = _Maker(rng, placer, config)
    diameter = make.diameter("bleed")
    places = placer.places(rng, 0.15 * diameter)
    nuclei = np.abs(places.points) * [1, 0, 0] + places.points * [0, 1, 1] - [24.0, 0.0, 6.0]
    deep = 0.15 + np.exp(-0.5 * (np.linalg.norm(nuclei, axis=1) / 12.0) ** 2)
    weights = deep * (places.depth > 0.5 * diameter + 3.0) * (places.fractions[:, CSF] < 0.3)
    chosen = places.choose(rng, weights)
    if chosen is None:
        return None
    middle = places.points[chosen]
    shape = make.blob(middle, diameter, 0.2)
    rim, volume = make.sized(make.part("rim", shape, diameter), diameter)
    width = min(1.5, 0.15 * diameter)
    inside = make.part("bleed", shape, diameter)
    inside = replace(inside, threshold=rim.threshold - width)
    return make.lesion("bleed", [rim, inside], [_row(middle, diameter, volume, rim_mm=width)])


MAKERS: dict[str, Callable[[np.random.Generator, Placer, PhantomConfig], Lesion | None]] = {
    "wmh": wmh,
    "tumour": tumour,
    "infarct": infarct,
    "bleed": bleed,
}
