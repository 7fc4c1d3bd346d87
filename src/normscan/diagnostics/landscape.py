"""What the residual can find: anomalies by intensity and texture, restorations by their blur.

The experiments of Meissen, Wiestler, Kaissis and Rueckert, "On the Pitfalls of Using the Residual
Error as Anomaly Score", MIDL 2022. An autoencoder that has learnt healthy images perfectly but
restores them softly is simulated by a Gaussian blur of the image without its anomaly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscan.errors import ArgumentError

Restore = Callable[[np.ndarray, np.ndarray], np.ndarray]
TEXTURES = ("source", "sink", "shuffle")
# Intensities between these percentiles of the foreground count as those of healthy tissue.
NORMAL = (5.0, 95.0)
BINS = 256


@dataclass(frozen=True)
class Landscape:
    """Mean average precision of the absolute residual over images with one anomaly each.

    Attributes:
        intensities: (I,) of the disks.
        blurs: (S,) standard deviations in pixels of the simulated restoration.
        disks: (I, S) mean AP of disks.
        textures: (S,) mean AP of each change of texture.
        errors: (S,) mean absolute difference of the blurred image from the image.
        normal: (low, high) intensities of healthy tissue, percentiles 5 and 95 of the foreground.
        prevalence: mean share of anomalous pixels, the AP of a random map.
        images: number of images.
        restored: of a detector: ``disks_normal`` and ``disks_anomalous``, (I,) mean AP with the
            restoration of the image without and with its disk; ``error``, the mean absolute
            difference that it leaves of the image without; and for each texture two numbers, AP
            with the restoration of the image without and with it.
    """

    intensities: np.ndarray
    blurs: np.ndarray
    disks: np.ndarray
    textures: dict[str, np.ndarray]
    errors: np.ndarray
    normal: tuple[float, float]
    prevalence: float
    images: int
    restored: dict[str, Any] = field(default_factory=dict)

    def inside(self) -> np.ndarray:
        """Which of the intensities are those of healthy tissue, (I,) bool."""
        return (self.intensities >= self.normal[0]) & (self.intensities <= self.normal[1])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""

        def listed(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: listed(v) for k, v in value.items()}
            return value.tolist() if isinstance(value, np.ndarray) else value

        return {name: listed(value) for name, value in vars(self).items()}


def average_precision(inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Step-wise average precision where the negatives are shared by many sets of positives.

    Args:
        inside: (..., P) scores of the anomalous pixels of each set.
        outside: (N,) scores of the other pixels, ascending.

    Returns:
        (...) average precision, as scikit-learn's with P ones and N zeros.
    """
    inside = np.sort(inside, axis=-1)
    n = inside.shape[-1]
    # Of equal scores all count, so each takes the place of the first of them.
    starts = np.diff(inside, axis=-1, prepend=np.nan) != 0
    hits = n - np.maximum.accumulate(np.where(starts, np.arange(n), 0), axis=-1)
    false = len(outside) - np.searchsorted(outside, inside, side="left")
    return np.asarray((hits / (hits + false)).mean(axis=-1))


def equalized(images: np.ndarray, foregrounds: np.ndarray) -> np.ndarray:
    """Equalise the histogram (256 bins) of each image's foreground; outside it is zero.

    Args:
        images: (n, *spatial).
        foregrounds: (n, *spatial) bool.
    """
    import torch

    from normscan.methods.autoencoders.intensity import equalize

    result = np.zeros(images.shape, np.float64)
    for image, inside, out in zip(images, foregrounds, result, strict=True):
        out[inside] = equalize(torch.from_numpy(image[inside].astype(np.float64)), BINS).numpy()
    return result


def residual_landscape(
    images: np.ndarray,
    foregrounds: np.ndarray | None = None,
    *,
    intensities: Sequence[float] | np.ndarray | None = None,
    blurs: Sequence[float] | np.ndarray | None = None,
    radius: float = 20.0,
    restore: Restore | None = None,
    seed: int = 0,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Landscape:
    """Measure how well the absolute residual finds anomalies, over intensity and blur.

    Each image gets one disk, at the same random place of its foreground in every cell and clipped to
    the foreground: filled with an intensity, or with its texture changed (pixels moved outwards or
    inwards, or shuffled). The residual is that of the changed image from the blurred image without
    the change, or from what a detector makes of the image without and with it. The average
    precision is over all pixels of an image, and its mean over the images.

    Args:
        images: (n, *spatial) healthy images, about 0 to 1, of two or three axes.
        foregrounds: (n, *spatial) bool; where the images are above 0 by default, as in the article.
        intensities: of the disks; 101 from 0 to 1 by default (100 in the article).
        blurs: standard deviations in pixels; 101 from 0 to 5 by default (100 in the article).
        radius: of the disks in pixels; 20 in the article, whose images have 256.
        restore: (n, *spatial) images and foregrounds to restored images, of a detector.
        seed: of places and shuffles.
        track: passes the numbers of the images on and shows them.

    Raises:
        ArgumentError: arrays of other shapes, values that are not finite, or an image without
            foreground.

    Example:
        >>> image = np.clip(np.random.default_rng(0).normal(0.5, 0.1, (1, 64, 64)), 0, 1)
        >>> found = residual_landscape(image, intensities=[0.5, 1.0], blurs=[1.0], radius=8)
        >>> bool(found.disks[0, 0] < found.disks[1, 0])
        True
    """
    images = np.asarray(images, np.float64)
    inside = images > 0 if foregrounds is None else np.asarray(foregrounds, bool)
    levels = np.linspace(0, 1, 101) if intensities is None else np.asarray(intensities, float)
    sigmas = np.linspace(0, 5, 101) if blurs is None else np.asarray(blurs, float)
    _check(images, inside, levels, sigmas, radius)
    cells: list[dict[str, Any]] = []
    for i in track(range(len(images))):
        changed = _changed(images[i], inside[i], radius, seed, i)
        cell = _blurred(images[i], changed, levels, sigmas)
        if restore is not None:
            cell |= _restored(images[i], inside[i], changed, levels, restore)
        cells.append(cell)
    mean = {name: np.mean([cell[name] for cell in cells], axis=0) for name in cells[0]}
    low, high = np.percentile(images[inside], NORMAL)
    return Landscape(
        levels, sigmas, mean["disks"], {t: mean[t] for t in TEXTURES}, mean["errors"],
        (float(low), float(high)), float(mean["prevalence"]), len(images),
        {k.removeprefix("restored_"): v for k, v in mean.items() if k.startswith("restored_")},
    )  # fmt: skip


def _check(
    images: np.ndarray, inside: np.ndarray, levels: np.ndarray, sigmas: np.ndarray, radius: float
) -> None:
    if images.ndim not in (3, 4) or not len(images) or images.shape != inside.shape:
        raise ArgumentError(
            f"images have the shape {images.shape} and foregrounds {inside.shape}: give the same "
            "(n, height, width) or (n, x, y, z)."
        )
    if not inside.reshape(len(images), -1).any(1).all() or not np.isfinite(images).all():
        raise ArgumentError("an image has no foreground, or values that are not finite.")
    if levels.ndim != 1 or not levels.size or not np.isfinite(levels).all():
        raise ArgumentError("intensities: give one or more finite numbers.")
    if sigmas.ndim != 1 or not sigmas.size or not (np.isfinite(sigmas) & (sigmas >= 0)).all():
        raise ArgumentError("blurs: give one or more finite numbers, 0 or above.")
    if not radius >= 1:
        raise ArgumentError(f"radius is {radius:g}; it must be 1 pixel or more.")


@dataclass(frozen=True)
class _Changed:
    """An image's disk and what the changes of texture make of the image."""

    mask: np.ndarray
    textures: dict[str, np.ndarray]


def _changed(image: np.ndarray, inside: np.ndarray, radius: float, seed: int, i: int) -> _Changed:
    import torch

    from normscan.rng import Rng, derive_seed
    from normscan.synthesis.anomalies import deformed, disks, random_places, shuffled

    rng = Rng(derive_seed(seed, "landscape", i))
    x, foreground = torch.from_numpy(image)[None, None], torch.from_numpy(inside)[None, None]
    places = random_places(foreground, rng)
    mask = disks(foreground, places, radius)
    textures = {
        "source": deformed(x, mask, places, radius, "source"),
        "sink": deformed(x, mask, places, radius, "sink"),
        "shuffle": shuffled(x, mask, rng),
    }
    return _Changed(mask[0, 0].numpy(), {k: v[0, 0].numpy() for k, v in textures.items()})


def _blurred(
    image: np.ndarray, changed: _Changed, levels: np.ndarray, sigmas: np.ndarray
) -> dict[str, Any]:
    """AP of disks (I, S) and textures (S,) against blurred images."""
    from scipy.ndimage import gaussian_filter

    mask = changed.mask
    disks = np.empty((len(levels), len(sigmas)))
    textures = {t: np.empty(len(sigmas)) for t in TEXTURES}
    errors = np.empty(len(sigmas))
    for k, sigma in enumerate(sigmas):
        soft = gaussian_filter(image, sigma)
        residual = np.abs(soft - image)
        errors[k] = residual.mean()
        # Outside the disk nothing depends on what is in it: it is sorted once for all cells.
        outside = np.sort(residual[~mask])
        disks[:, k] = average_precision(np.abs(levels[:, None] - soft[mask]), outside)
        for name, values in textures.items():
            values[k] = average_precision(np.abs(changed.textures[name] - soft)[mask], outside)
    return {"disks": disks, "errors": errors, "prevalence": mask.mean(), **textures}


def _restored(
    image: np.ndarray, inside: np.ndarray, changed: _Changed, levels: np.ndarray, restore: Restore
) -> dict[str, Any]:
    """The same with what a detector makes of the image without and with the anomaly."""
    mask = changed.mask
    disks = np.where(mask, levels.reshape(-1, *[1] * image.ndim), image)
    shown = np.stack([image, *changed.textures.values(), *disks])
    made = restore(shown, np.broadcast_to(inside, shown.shape))

    def precision(x: np.ndarray, restored: np.ndarray) -> float:
        residual = np.abs(x - restored)
        return float(average_precision(residual[mask], np.sort(residual[~mask])))

    first = 1 + len(changed.textures)
    found: dict[str, Any] = {
        "restored_disks_normal": [precision(x, made[0]) for x in disks],
        "restored_disks_anomalous": [
            precision(x, y) for x, y in zip(disks, made[first:], strict=True)
        ],
        "restored_error": np.abs(made[0] - image).mean(),
    }
    for k, (name, x) in enumerate(changed.textures.items(), start=1):
        found[f"restored_{name}"] = [precision(x, made[0]), precision(x, made[k])]
    return found
