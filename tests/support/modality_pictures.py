"""Synthetic pictures of each modality with known truth: head CT, retina, stained tile, sector, OCT."""

from __future__ import annotations

import numpy as np

from normscan.preprocess.steps import Working
from normscan.scan import Scan


def picture(array, dtype=np.uint8):
    """A 2D scan: (H, W) grey or (3, H, W) colour."""
    array = np.asarray(array)
    return Working.of(
        Scan.from_array(
            np.clip(array, 0, np.iinfo(dtype).max).round().astype(dtype),
            channels=("red", "green", "blue") if array.ndim == 3 else None,
        )
    )


def ct(array, spacing=1.0):
    return Working.of(Scan.from_array(np.asarray(array, np.int16), spacing=spacing))


def disc(shape, centre, radius):
    y, x = np.indices(shape)
    return np.hypot(y - centre[0], x - centre[1]) <= radius


def overlap(a, b):
    """Dice coefficient."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# --- synthetic pictures


def head(rng, shape=(120, 120, 40), spacing=(1.0, 1.0, 2.0)):
    """Head CT: scalp, skull, brain with ventricle, calcification and bleeding; holder and table."""
    index = np.indices(shape).astype(float)
    offset = [(i - c) * s for i, c, s in zip(index, (55, 60, 16), spacing, strict=True)]
    r = np.sqrt(sum((o / a) ** 2 for o, a in zip(offset, (42, 36, 46), strict=True)))
    hu = np.full(shape, -1000.0)
    hu[r < 1] = -80
    hu[r < 0.96] = 50
    hu[r < 0.92] = 1000
    brain = r < 0.78
    hu[brain] = 32
    hu[r < 0.2] = 8
    hu[50:53, 70:73, 10:13] = 400
    hu[40:48, 70:78, 14:20] = 70
    y, x = index[0], index[1]
    holder = (np.hypot(y - 55, x - 60) > 50) & (np.hypot(y - 55, x - 60) < 53) & (y > 60)
    hu[holder] = 100
    hu[112:115] = -100
    hu += rng.normal(0, 6, shape)
    hu[:, :3], hu[:, -3:] = -3024, -3024
    return hu, r < 1, brain, spacing


def fundus(rng, shape=(200, 260), centre=(102, 128), radius=110):
    """Retina with a disc, vessels and a cut-off circle, on a noisy black surround with a label."""
    inside = disc(shape, centre, radius)
    y, x = np.indices(shape)
    fade = 1 - 0.5 * (np.hypot(y - centre[0], x - centre[1]) / radius) ** 2
    rgb = np.stack([180 * fade, 90 * fade, 40 * fade])
    rgb[:, disc(shape, (100, 180), 14)] += np.array([60, 90, 60])[:, None]
    rgb[:, np.abs(y - 100 - 20 * np.sin(x / 30)) < 2] *= 0.6
    rgb = np.where(inside, rgb, 2) + rng.normal(0, 2, rgb.shape)
    rgb[:, 4:9, 4:20] = 200
    return rgb, inside


def stained(rng, stains, shape=(96, 96), light=240.0, glass=0.3):
    """Tile of two known stains: pixels of either alone, mixtures, and empty glass."""
    n = shape[0] * shape[1]
    strength = rng.uniform(0.6, 1.6, (2, n))
    kind = rng.uniform(size=n)
    strength[0, kind < 0.25] = 0
    strength[1, (kind > 0.25) & (kind < 0.5)] = 0
    strength[:, rng.uniform(size=n) < glass] = 0
    rgb = light * np.exp(-stains @ strength) - 1
    return rgb.reshape(3, *shape), strength


def unit(matrix):
    matrix = np.asarray(matrix, float)
    return matrix / np.linalg.norm(matrix, axis=0)


STAINS = unit([[0.62, 0.30], [0.70, 0.85], [0.30, 0.42]])


def sector(rng, shape=(160, 200)):
    """Ultrasound sector of speckle with text and a grey bar beside it."""
    y, x = np.indices(shape)
    angle, r = np.arctan2(x - 100, y + 10), np.hypot(y + 10, x - 100)
    inside = (np.abs(angle) < 0.6) & (r > 20) & (r < 150)
    image = np.where(inside, rng.gamma(2, 35, shape), 0)
    text = np.zeros(shape, bool)
    text[5:10, 5:40] = text[60:140, 190:195] = text[150:154, 5:30] = True
    image[text] = 250
    return image, inside, text


def bscan(rng, shape=(128, 160)):
    """OCT B-scan: a bright bent band on dark speckle, with a white wedge in two corners."""
    y, x = np.indices(shape)
    band = np.abs(y - 60 - 8 * np.cos(x / 40)) < 14
    image = np.where(band, 150, 20) + rng.normal(0, 8, shape)
    wedge = (y + 0.3 * x < 20) | (y - 0.2 * x > 112)
    image[wedge] = 255
    return image, band, wedge
