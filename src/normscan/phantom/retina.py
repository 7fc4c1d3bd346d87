"""A SIMULATED retina: B-scans of optical coherence tomography with known layers and lesions.

Rows are depth, columns lie side by side. Between eight boundaries, from the inner limiting membrane
down to Bruch's membrane, lie seven layers; above is the vitreous, below the choroid. All lengths are
in micrometres. Thicknesses and brightnesses are in the order of clinical scans; no anatomy of a
population is claimed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normscan.phantom.config import RETINA_KINDS, PhantomConfig
from normscan.phantom.fields import stream
from normscan.phantom.files import write_json, write_table

# Nerve fibres, ganglion cells and inner plexiform, inner nuclear, outer plexiform, outer nuclear,
# photoreceptors' segments, pigment epithelium.
LAYERS = ("nfl", "gcl", "inl", "opl", "onl", "seg", "rpe")
THICKNESS = np.array([28.0, 70.0, 38.0, 30.0, 75.0, 42.0, 22.0])
# What is left of a layer at the bottom of the fovea, whose pit has a radius of 350.
FOVEA = np.array([0.15, 0.1, 0.15, 0.3, 1.35, 1.15, 1.0])
# Vitreous, the layers, choroid: labels 0 to 8.
BRIGHTNESS = np.array([0.05, 0.75, 0.5, 0.3, 0.48, 0.2, 0.6, 0.85, 0.45])
CHOROID = len(LAYERS) + 1
WIDTH, DEPTH = 6000.0, 900.0
_SHAPE, _LOOK, _LESION = 11, 12, 13  # random streams of a subject


@dataclass(frozen=True, eq=False)
class Retina:
    """A B-scan and all that is known of it.

    Attributes:
        image: (rows, columns), about 0 to 1.
        boundaries: (8, columns), rows of the boundaries from above, not rounded.
        layers: (rows, columns) labels, 0 vitreous, 1 to 7 the layers, 8 choroid.
        mask: (rows, columns) of the lesion.
        healthy_twin: the image without the lesion.
    """

    image: np.ndarray
    boundaries: np.ndarray
    layers: np.ndarray
    mask: np.ndarray
    healthy_twin: np.ndarray

    @property
    def tissue(self) -> np.ndarray:
        """Between the first and the last boundary, (rows, columns)."""
        return np.asarray((self.layers > 0) & (self.layers < CHOROID))


def _wave(rng: np.random.Generator, x: np.ndarray, waves: int = 3) -> np.ndarray:
    """A smooth curve of standard deviation about 1 along columns x, 0 to 1."""
    amplitude, phase = rng.normal(size=waves), rng.uniform(0, 2 * np.pi, waves)
    k = np.arange(1, waves + 1)
    waved = amplitude / k * np.sin(np.pi * np.outer(x, k) + phase)
    return np.asarray(waved.sum(1) / np.sqrt((0.5 / k**2).sum()))


def _boundaries(config: PhantomConfig, rng: np.random.Generator, columns: int) -> np.ndarray:
    """Boundaries (8, columns) in micrometres from above."""
    x = (np.arange(columns) + 0.5) / columns
    pit = np.exp(-0.5 * ((x - rng.uniform(0.4, 0.6)) * WIDTH / 350) ** 2)
    spread = 2 * config.tissue_variation
    vary = 1 + spread * np.stack([_wave(rng, x) + rng.normal() for _ in LAYERS])
    thick = THICKNESS[:, None] * vary * (1 - pit * (1 - FOVEA[:, None]))
    curve = 0.6 * DEPTH + 12 * config.shift * rng.normal() + 60 * (x - 0.5) * rng.normal()
    bruch = curve - 160 * (x - 0.5) ** 2 + 4 * config.deformation / 3.5 * _wave(rng, x)
    below = np.cumsum(thick[::-1], axis=0)[::-1]
    return np.asarray(np.vstack([bruch - below, bruch[None]]))


def _labels(boundaries: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Number of boundaries that lie above the middle of each pixel, (rows, columns)."""
    return np.asarray((depth[:, None] >= boundaries[:, None, :]).sum(0))


def _drusen(
    boundaries: np.ndarray, x: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Boundaries lifted by deposits below the pigment epithelium, and their height (columns,)."""
    height = np.zeros_like(x)
    for _ in range(int(rng.integers(1, 4))):
        centre, radius = rng.uniform(0.15, 0.85) * WIDTH, rng.uniform(150, 400)
        height = np.maximum(
            height, rng.uniform(50, 110) * np.exp(-0.5 * ((x * WIDTH - centre) / radius * 2) ** 2)
        )
    lifted = boundaries.copy()
    # The inner layers are pressed together: what is lifted fades towards the vitreous.
    share = np.array([0.3, 0.35, 0.5, 0.6, 0.7, 0.9, 1.0, 0.0])
    lifted = lifted - share[:, None] * height
    for k in reversed(range(len(LAYERS))):  # thin layers are pushed along
        lifted[k] = np.minimum(lifted[k], lifted[k + 1] - 4)
    return lifted, height


def make_retina(config: PhantomConfig, index: int, kind: str | None = None) -> Retina:
    """Simulate one subject.

    Args:
        config: ``size`` (rows, columns), ``contrast``, ``noise`` and the variations.
        index: number of the subject.
        kind: of the lesion, one of ``RETINA_KINDS``; None for a healthy one.
    """
    kind = kind if config.contrast else None
    rows, columns = config.size or (128, 128)
    x = (np.arange(columns) + 0.5) / columns
    depth = (np.arange(rows) + 0.5) / rows * DEPTH
    healthy = _boundaries(config, stream(config.seed, index, _SHAPE), columns)
    look, rng = stream(config.seed, index, _LOOK), stream(config.seed, index, _LESION)
    means = BRIGHTNESS * (1 + config.tissue_variation * look.normal(size=len(BRIGHTNESS)))
    gain = np.exp(config.gain_variation * look.normal() + config.bias * _wave(look, x))
    speckle = look.gamma(1 / (4 * config.noise), 4 * config.noise, (rows, columns))

    def painted(boundaries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels = _labels(boundaries, depth)
        image = means[labels]
        into = np.maximum(depth[:, None] - boundaries[-1], 0)
        return np.where(labels == CHOROID, image * np.exp(-into / 200), image), labels

    plain, labels = painted(healthy)
    boundaries, image, mask = healthy, plain, np.zeros((rows, columns), bool)
    if kind == "drusen":
        boundaries, height = _drusen(healthy, x, rng)
        image, labels = painted(boundaries)
        floor = healthy[-1] - np.maximum(height, 0)
        mask = (depth[:, None] >= floor) & (depth[:, None] < healthy[-1]) & (height > 8)
        image = np.where(mask, 0.5, image)
    elif kind == "fluid":
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.uniform(0.15, 0.85) * columns)
            low, high = healthy[2, at], healthy[5, at]
            centre, half = (low + high) / 2, max(30.0, (high - low) * rng.uniform(0.3, 0.45))
            r = ((x - x[at]) * WIDTH / rng.uniform(150, 400)) ** 2
            mask |= r + ((depth[:, None] - centre) / half) ** 2 < 1
        image = np.where(mask, 0.07, image)
    elif kind == "atrophy":
        reach, centre = rng.uniform(400, 900), rng.uniform(0.3, 0.7) * WIDTH
        gone = np.abs(x * WIDTH - centre) < reach
        mask = gone & (labels >= 6) & (labels <= 7)
        image = np.where(mask, 0.3, image)
        image = np.where(gone & (labels == CHOROID), 1.7 * image, image)
    elif kind is not None:
        raise ValueError(f"no lesion of a retina is called {kind}")
    image = plain + config.contrast * (image - plain)
    return Retina(image * gain * speckle, boundaries, labels, mask, plain * gain * speckle)


def write_retinas(folder: Path, config: PhantomConfig, index: int, split: str) -> dict[str, Any]:
    """Write one subject's pictures and boundaries and return its row of ``cohort.csv``."""
    kind = config.kinds[index % len(config.kinds)] if index >= config.healthy else None
    retina, name = make_retina(config, index, kind), f"sub-{index + 1:03d}"
    pictures = {
        "path": np.clip(np.rint(200 * retina.image), 0, 255),
        "structures": retina.layers,
        "foreground": retina.tissue,
        **({"mask": retina.mask} if kind else {}),
    }
    row: dict[str, Any] = {"scan": name, "subject": name, "label": int(kind is not None)}
    for column, array in pictures.items():
        row[column] = f"{'scans' if column == 'path' else column}/{name}.png"
        _write_picture(folder / row[column], array.astype(np.uint8))
    columns = [f"column{j}" for j in range(retina.boundaries.shape[1])]
    at = np.round(retina.boundaries / DEPTH * len(retina.image) - 0.5, 3)
    write_table(
        folder / f"{name}_boundaries.csv",
        [dict(zip(columns, line, strict=True)) for line in at.tolist()],
        columns,
    )
    return {**row, "mask": row.get("mask", ""), "split": split, "kind": kind or "healthy"}


def describe_retinas(folder: Path) -> None:
    """Write what the folder is."""
    write_json(
        folder / "dataset_description.json",
        {"Name": "SIMULATED retinal B-scans with layers and lesions (normscan phantom)"},
    )
    text = (
        "This data set is SIMULATED. No person was scanned. Layers and lesions are drawn by formulas "
        f"({', '.join(RETINA_KINDS)}). It must not be used to claim clinical performance.\n\n"
        "structures: 0 vitreous, "
        + ", ".join(f"{i} {name}" for i, name in enumerate(LAYERS, 1))
        + f", {CHOROID} choroid. sub-*_boundaries.csv: rows of the eight boundaries by column, from "
        "the inner limiting membrane down to Bruch's membrane.\n"
    )
    (folder / "README").write_text(text, encoding="utf-8")


def _write_picture(path: Path, array: np.ndarray) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
