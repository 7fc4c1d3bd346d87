"""Kinds of lesions that don't resemble each other, and which of them go into which scan.

All have the outline of ``BlobSite``; they differ in what is inside: more or less intensity, a texture
of the same mean, tissue that is pushed aside, tissue of another place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normscan.planting.sites import BlobSite, Planted, ends, found_foreground, planted, spread
from normscan.rng import derive_seed
from normscan.scan import Scan

# What a change (C, *shape) looks like, for a site, the filled parts, a strength and randomness.
Change = Callable[[BlobSite, np.ndarray, float, np.random.Generator], np.ndarray]

# Diameters as parts of the diameter of the anatomy, and strengths, which are contrasts in robust
# standard deviations of the foreground where the kind has a contrast.
BANDS = {"small": ((0.04, 0.10), (2.0, 6.0)), "large": ((0.12, 0.30), (1.0, 4.0))}
WANTED = 120  # lesions in all, where there are few scans
SCANS = 60  # into which lesions are planted at most


def _unit(site: BlobSite) -> np.ndarray:
    return spread(site.twin, site.inside).reshape(-1, *[1] * site.twin.dims)


def bright(
    site: BlobSite, filled: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """More intensity than the tissue, whose texture shows through."""
    return strength * _unit(site) * filled


def dark(
    site: BlobSite, filled: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Less intensity than the tissue."""
    return -strength * _unit(site) * filled


def mottled(
    site: BlobSite, filled: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """A coarse texture without a change of the mean."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(rng.standard_normal(filled.shape), 1.0)
    within = filled > 0
    noise = noise - np.average(noise, weights=filled)
    return strength * _unit(site) * filled * noise / max(float(noise[within].std()), 1e-12)


def displaced(
    site: BlobSite, filled: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Tissue that is pushed outwards from the centre, as by a mass; the border stays in place."""
    from scipy.ndimage import map_coordinates

    index = np.stack(np.meshgrid(*map(np.arange, filled.shape), indexing="ij"))
    shape = (-1, *[1] * filled.ndim)
    spacing = np.asarray(site.twin.spacing).reshape(shape)
    offset = index - site.index.reshape(shape)
    radius = np.sqrt(((offset * spacing) ** 2).sum(0))
    share = np.clip(radius / max(float(radius[filled > 0].max()), 1e-12), 0, 1)
    # At the border share is 1 and nothing moves.
    taken = site.index.reshape(shape) + offset * share ** (0.5 * strength)
    moved = [map_coordinates(channel, taken, order=1, mode="nearest") for channel in site.twin.data]
    return np.where(filled > 0, np.stack(moved) - site.twin.data, 0.0)


def foreign(
    site: BlobSite, filled: np.ndarray, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Tissue of the same scan from another place of the anatomy."""
    places = np.argwhere(site.inside)
    others = places[rng.integers(len(places), size=16)]
    far = np.linalg.norm((others - site.index) * site.twin.spacing, axis=1)
    shift = np.round(site.index - others[far.argmax()]).astype(int)
    moved = np.roll(site.twin.data, tuple(shift), axis=tuple(range(1, filled.ndim + 1)))
    return filled * (moved - site.twin.data)


KINDS: dict[str, Change] = {
    "bright": bright, "dark": dark, "mottled": mottled, "displaced": displaced, "foreign": foreign,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A kind of lesion and whether it is ``small`` or ``large``."""

    kind: str
    band: str


CELLS = tuple(Cell(kind, band) for band in BANDS for kind in KINDS)


def dealt(scans: Sequence[str]) -> dict[str, list[Cell]]:
    """Return which lesions go into which scan, so that every cell gets about as many.

    Args:
        scans: ids in an order that chance gave.
    """
    if not scans:
        return {}
    chosen = list(scans)[:SCANS]
    each = min(len(CELLS), max(2, -(-WANTED // len(chosen))))
    return {
        scan: [CELLS[(i * each + j) % len(CELLS)] for j in range(each)]
        for i, scan in enumerate(chosen)
    }


def plant(
    scan: Scan, foreground: np.ndarray | None, cells: Sequence[Cell], *seed: object
) -> Iterator[tuple[Cell, Planted]]:
    """Yield a healthy scan with one lesion after the other, each at a place of its own.

    Args:
        scan: a healthy one.
        foreground: (*scan.shape) bool, or None to have it found by intensity.
        cells: what to plant.
        seed: of places, outlines, sizes and strengths.

    Raises:
        ScanError: the foreground is constant, or no voxel can show a lesion.
    """
    inside = found_foreground(scan) if foreground is None else foreground
    extent = float(inside.sum()) * scan.voxel_volume
    across = (4 * extent / np.pi) ** 0.5 if scan.dims == 2 else (6 * extent / np.pi) ** (1 / 3)
    for number, cell in enumerate(cells):
        rng = np.random.default_rng(derive_seed(*seed, number))
        sizes, strengths = BANDS[cell.band]
        size = max(across * _between(rng, sizes), 2 * min(scan.spacing))
        site = BlobSite("", scan.name, scan, inside, rng, size)
        yield cell, planted_at(site, cell.kind, size, _between(rng, strengths), rng)


def planted_at(
    site: BlobSite, kind: str, size: float, strength: float, rng: np.random.Generator
) -> Planted:
    """Plant one lesion.

    Args:
        site: where.
        kind: one of ``KINDS``.
        size: diameter in mm.
        strength: see ``BANDS``.
        rng: of textures.
    """
    filled = site.fraction(size)
    if not filled.max() > 0:
        return planted(site.twin, site.twin, filled, site.inside, site.centre)  # says so
    low, high = ends(site.twin)
    data = site.twin.data + KINDS[kind](site, filled, strength, rng)
    # Outside of the lesion the values are those of the twin, beyond the ends of the scale too.
    data = np.where(filled > 0, np.clip(data, low, high), site.twin.data).astype(np.float32)
    return planted(site.twin, site.twin.with_data(data), filled, site.inside, site.centre)


def _between(rng: np.random.Generator, ends: tuple[float, float]) -> float:
    """Draw a number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(*np.log(ends))))
