"""The parameters of a simulated cohort, checked when they are set."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from normscan.errors import ArgumentError, nearest

MODALITIES = ("T1w", "T2w", "FLAIR")
KINDS = ("wmh", "tumour", "infarct", "bleed")
RETINA_KINDS = ("drusen", "fluid", "atrophy")
# What a retina takes of a brain's parameters; it leaves the others as they are.
RETINA_SETTINGS = (
    "healthy", "lesioned", "size", "kinds", "contrast", "deformation", "shift", "tissue_variation",
    "gain_variation", "bias", "noise", "splits", "seed", "anatomy",
)  # fmt: skip

# Equivalent-sphere diameters in mm. Chosen by us to span what screening would meet, from a lesion
# of a few pixels to one that nobody overlooks; no epidemiology is claimed.
DIAMETERS = {
    "wmh": (5.0, 11.0),
    "tumour": (24.0, 50.0),
    "infarct": (20.0, 45.0),
    "bleed": (9.0, 24.0),
}

# What every grid must cover, in mm along x, y, z: the template brain with the largest affine.
FIELD_OF_VIEW = (170.0, 208.0, 168.0)

_NOT_NEGATIVE = (
    "deformation", "scale_variation", "rotation", "shift", "sulci", "tissue_variation",
    "gain_variation", "texture", "bias", "noise", "contrast", "irregularity", "min_area",
)  # fmt: skip


@dataclass(frozen=True)
class PhantomConfig:
    """All parameters of `simulate`, which describes each; stored as ``phantom.json``.

    Raises:
        ArgumentError: a value outside its range, an unknown kind or modality.
    """

    healthy: int = 60
    lesioned: int = 30
    modalities: tuple[str, ...] = ("FLAIR",)
    dims: int = 2
    spacing: float = 1.5
    size: tuple[int, ...] | None = None
    slices: int = 1
    slice_gap: float = 3.0
    heights: tuple[float, float] = (-10.0, 45.0)
    kinds: tuple[str, ...] = KINDS
    diameter: tuple[float, float] | None = None
    contrast: float = 1.0
    wmh_count: tuple[int, int] = (3, 8)
    mass_effect: float = 0.5
    irregularity: float = 0.15
    edge: float = 1.5
    min_area: float = 10.0
    deformation: float = 3.5
    scale_variation: float = 0.03
    rotation: float = 2.5
    shift: float = 2.0
    sulci: float = 0.5
    tissue_variation: float = 0.03
    gain_variation: float = 0.08
    texture: float = 0.03
    bias: float = 0.08
    noise: float = 0.02
    skull_strip: bool = True
    splits: tuple[float, float, float] = (0.6, 0.15, 0.25)
    seed: int = 0
    anatomy: str = "brain"

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # YAML and JSON know no tuples
                object.__setattr__(self, field.name, tuple(value))
        _known("anatomy", (self.anatomy,), ("brain", "retina"))
        self._check_counts()
        if self.anatomy == "retina":
            self._check_retina()
        else:
            self._check_grid()
            self._check_lesions()
        for name in _NOT_NEGATIVE:
            _require(
                _finite(getattr(self, name)) and getattr(self, name) >= 0, name, self, "0 or more"
            )
        _require(self.scale_variation <= 0.05, "scale_variation", self, "at most 0.05")
        _require(self.deformation <= 20, "deformation", self, "at most 20 (mm)")
        _require(self.irregularity <= 0.3, "irregularity", self, "at most 0.3")
        _require(self.shift <= 5, "shift", self, "at most 5 (mm)")
        _require(self.rotation <= 5, "rotation", self, "at most 5 (degrees)")
        _require(self.tissue_variation <= 0.05, "tissue_variation", self, "at most 0.05")

    def _check_counts(self) -> None:
        for name in ("healthy", "lesioned"):
            value = getattr(self, name)
            _require(isinstance(value, int) and 0 <= value <= 9999, name, self, "0 to 9999")
        _require(self.healthy + self.lesioned > 0, "healthy", self, "positive if lesioned is 0")
        _require(
            isinstance(self.seed, int) and self.seed >= 0, "seed", self, "an integer, 0 or more"
        )
        good = len(self.splits) == 3 and all(_finite(s) and s >= 0 for s in self.splits)
        _require(
            good and abs(sum(self.splits) - 1) < 1e-6, "splits", self,
            "three shares (train, val, test) that add up to 1",
        )  # fmt: skip

    def _check_retina(self) -> None:
        if self.kinds == KINDS:
            object.__setattr__(self, "kinds", RETINA_KINDS)
        _known("lesion kind", self.kinds, RETINA_KINDS)
        for field in fields(self):
            _require(
                field.name in RETINA_SETTINGS or getattr(self, field.name) == field.default,
                field.name, self, "left out: it is a setting of brains, not of a retina",
            )  # fmt: skip
        _require(
            self.size is None
            or (len(self.size) == 2 and all(isinstance(n, int) and n >= 64 for n in self.size)),
            "size", self, "two numbers of pixels, rows and columns, 64 or more, or nothing",
        )  # fmt: skip
        _require(_finite(self.noise) and self.noise > 0, "noise", self, "positive for a retina")

    def _check_grid(self) -> None:
        _require(self.dims in (2, 3), "dims", self, "2 or 3")
        _require(
            _finite(self.spacing) and 0.5 <= self.spacing <= 8, "spacing", self, "0.5 to 8 (mm)"
        )
        _require(isinstance(self.slices, int) and self.slices >= 1, "slices", self, "1 or more")
        _require(self.dims == 2 or self.slices == 1, "slices", self, "1 for volumes (dims=3)")
        _require(_finite(self.slice_gap) and self.slice_gap > 0, "slice_gap", self, "positive (mm)")
        _range(
            "heights", self.heights, self, -40, 70, "two heights in MNI mm, -40 to 70, low first"
        )
        span = (self.slices - 1) * self.slice_gap
        _require(
            span <= self.heights[1] - self.heights[0], "slices", self,
            f"so few that (slices - 1) * slice_gap = {span:g} mm fits between the heights",
        )  # fmt: skip
        if self.size is not None:
            _require(
                len(self.size) == self.dims
                and all(
                    isinstance(n, int) and n * self.spacing >= fov
                    for n, fov in zip(self.size, FIELD_OF_VIEW, strict=False)
                ),
                "size", self,
                f"{self.dims} numbers of voxels that cover "
                f"{' x '.join(f'{f:g}' for f in FIELD_OF_VIEW[: self.dims])} mm, or nothing",
            )  # fmt: skip

    def _check_lesions(self) -> None:
        _known("modality", self.modalities, MODALITIES)
        _known("lesion kind", self.kinds, KINDS)
        _require(
            _finite(self.mass_effect) and 0 <= self.mass_effect <= 0.9,
            "mass_effect",
            self,
            "0 to 0.9",
        )
        _require(_finite(self.edge) and self.edge > 0, "edge", self, "positive (mm)")
        low, high = self.wmh_count if len(self.wmh_count) == 2 else (0, 0)
        good = isinstance(low, int) and isinstance(high, int) and 1 <= low <= high <= 50
        _require(good, "wmh_count", self, "two integers, 1 to 50, low first")
        if self.diameter is not None:
            _range(
                "diameter", self.diameter, self, 3, 70, "two diameters in mm, 3 to 70, low first"
            )
        if self.lesioned and self.slices > 1:
            self._check_reach()

    def _check_reach(self) -> None:
        span = (self.slices - 1) * self.slice_gap
        # White-matter hyperintensities are several, so that each slice gets its own.
        single = [kind for kind in self.kinds if kind != "wmh"]
        short = [kind for kind in single if 0.7 * self.diameters(kind)[0] < span]
        if short:
            raise ArgumentError(
                f"{self.slices} slices {self.slice_gap:g} mm apart span {span:g} mm, but the "
                f"smallest {short[0]} has a diameter of {self.diameters(short[0])[0]:g} mm, so "
                "some slices would miss it. Take fewer slices, a smaller slice_gap or a larger "
                "diameter."
            )

    def diameters(self, kind: str) -> tuple[float, float]:
        """Return the smallest and largest diameter in mm for a kind of lesion."""
        return self.diameter or DIAMETERS[kind]

    def as_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON can hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _require(good: bool, name: str, config: PhantomConfig, wanted: str) -> None:
    if not good:
        raise ArgumentError(f"{name} is {getattr(config, name)!r}, it must be {wanted}.")


def _range(
    name: str, value: tuple[float, ...], config: PhantomConfig, low: float, high: float, wanted: str
) -> None:
    good = len(value) == 2 and all(_finite(v) for v in value)
    _require(good and low <= value[0] <= value[1] <= high, name, config, wanted)


def _known(what: str, names: Iterable[str], known: tuple[str, ...]) -> None:
    names = tuple(names)
    if not names:
        raise ArgumentError(f"No {what} given. Choose from {', '.join(known)}.")
    for name in names:
        if name not in known:
            raise ArgumentError(
                f"Unknown {what} '{name}'.{nearest(name, known)} Choose from {', '.join(known)}."
            )
    if len(set(names)) < len(names):
        raise ArgumentError(f"A {what} is named twice in {', '.join(names)}.")
