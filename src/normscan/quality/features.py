"""Simple features of a scan, by which it is compared with healthy ones."""

from __future__ import annotations

import itertools

import numpy as np

from normscan.preprocess.foreground import bounding_box
from normscan.preprocess.grid import axis_weights

# More channels than these are averaged.
MOST_CHANNELS = 4
# Features are kept as whole hundredths: small in a file and the same before and after saving.
UNIT = 100
# A lesion, however bright, hardly moves the inner quantiles: they are what scans are compared by.
QUANTILES = (10, 25, 50, 75, 90)
GRADIENT_QUANTILES = (25, 50, 75)


def side(dims: int, channels: int) -> int:
    """Return the side of the thumbnail of a scan with so many (averaged) channels, in cells."""
    return 8 if dims == 2 else 6 if channels == 1 else 4


def thumbnail(image: np.ndarray, cells: int) -> np.ndarray:
    """Average (*spatial) down to ``cells`` along each axis."""
    for axis, n in enumerate(image.shape):
        centres = (np.arange(cells) + 0.5) * n / cells - 0.5
        weights = axis_weights(n, centres, n / cells)
        image = np.moveaxis(np.tensordot(weights, image, axes=(1, axis)), 0, axis)
    return image


def describe(
    small: np.ndarray, foreground: np.ndarray, colour: bool = False
) -> dict[str, np.ndarray]:
    """Return the features by view, in whole hundredths.

    ``picture``: a thumbnail of the box around the foreground, where 1 is the foreground's median;
    ``histogram``: quantiles of the foreground and the balance of colours; ``texture``: gradients
    and noise; ``outline``: how the foreground fills the image and touches its borders.

    Args:
        small: (C, *spatial) canonical, averaged down.
        foreground: (*spatial) bool.
        colour: the channels are red, green and blue; they are averaged, their balance is kept.
    """
    if colour or len(small) > MOST_CHANNELS:
        means = small[:, foreground].mean(axis=1) if colour else np.ones(1)
        tint = np.resize(means / max(float(np.abs(means).mean()), 1e-6), 3)
        small = small.mean(axis=0, keepdims=True)
    else:
        tint = np.ones(3)
    box = tuple(slice(a, b) for a, b in bounding_box(foreground))
    cells = side(foreground.ndim, len(small))
    views: dict[str, list[np.ndarray]] = {"picture": [], "histogram": [tint], "texture": []}
    for channel in small:
        values = channel[foreground]
        low = float(np.percentile(channel, 1))
        marks = np.percentile(values, QUANTILES) - low
        middle = float(marks[2])
        unit = max(middle, 0.25 * float(marks[-1] - marks[0]), 1e-6)
        picture = np.clip(thumbnail((channel[box] - low) / unit, cells), -1, 3)
        views["picture"].append(picture.ravel())
        views["histogram"].append(np.clip(marks / unit, -1, 5))
        views["texture"].append(_texture(channel[box] / unit, foreground[box]))
    views["outline"] = [_outline(foreground)]
    return {
        name: np.rint(np.concatenate(parts) * UNIT).astype(np.int32)
        for name, parts in views.items()
    }


def _texture(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Logarithms of gradient quantiles and of the noise, (len(GRADIENT_QUANTILES) + 1,)."""
    axes = [a for a, n in enumerate(image.shape) if n > 2]
    if not axes or not inside.any():
        return np.zeros(len(GRADIENT_QUANTILES) + 1)
    slopes = [np.gradient(image, axis=a) for a in axes]
    size = np.sqrt(sum(s * s for s in slopes))[inside]
    curve = sum(np.gradient(s, axis=a) for s, a in zip(slopes, axes, strict=True))
    noise = np.median(np.abs(curve[inside]))
    return np.log10(np.append(np.percentile(size, GRADIENT_QUANTILES), noise) + 1e-3)


def _outline(foreground: np.ndarray) -> np.ndarray:
    """Fractions of the image: box along each axis, fill, borders touched, symmetry."""
    box = bounding_box(foreground)
    extent = [(b - a) / n for (a, b), n in zip(box, foreground.shape, strict=True)]
    inner = foreground[tuple(slice(a, b) for a, b in box)]
    # Rows of a picture run down: its left and right lie along the last axis, in RAS+ the first.
    mirror = np.flip(inner, -1 if foreground.ndim == 2 else 0)
    symmetry = (inner & mirror).sum() / max(1, (inner | mirror).sum())
    touched = [
        np.take(foreground, i, axis).mean() for axis in range(foreground.ndim) for i in (0, -1)
    ]
    return np.array([*extent, foreground.mean(), inner.mean(), symmetry, *touched])


def turned(picture: np.ndarray, dims: int) -> dict[str, list[np.ndarray]]:
    """Return the thumbnail as it is, upside-down and turned, each with its mirror image.

    Left and right can't be told apart by a thumbnail, so a mirror image counts as the same.

    Args:
        picture: (C * side**dims,) features of the view ``picture``.
        dims: 2 or 3.
    """
    one = side(dims, 1)
    cells = one if dims == 2 or len(picture) == one**dims else side(dims, 2)
    image = picture.reshape(-1, *[cells] * dims)
    left_right = 1 if dims == 2 else 0
    other = "upside-down or back to front"
    found: dict[str, list[np.ndarray]] = {"as it is": [], other: [], "turned": []}
    for order in itertools.permutations(range(dims)):
        for flips in itertools.product((1, -1), repeat=dims):
            steps = tuple(slice(None, None, f) for f in flips)
            moved = image.transpose(0, *(a + 1 for a in order))[(slice(None), *steps)]
            upright = all(f == 1 for a, f in enumerate(flips) if a != left_right)
            straight = "as it is" if upright else other
            name = straight if order == tuple(range(dims)) else "turned"
            found[name].append(moved.ravel())
    return found
