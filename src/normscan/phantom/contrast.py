"""From tissue fractions to an MR signal: mean intensities, texture, bias field, noise.

The intensities are arbitrary units chosen by us (1 = white matter in T1w, or CSF in T2w). Only
their ORDER is taken from clinical imaging: T1w CSF < GM < WM; T2w WM < GM < CSF; FLAIR, where fluid
is nulled, CSF < WM < GM. They are no measurement and no solution of the Bloch equations.
"""

from __future__ import annotations

import numpy as np

from normscan.phantom.config import MODALITIES, PhantomConfig
from normscan.phantom.fields import SmoothField, clipped_normal, stream

# CSF, GM, WM
TISSUE: dict[str, tuple[float, float, float]] = {
    "T1w": (0.25, 0.66, 1.00),
    "T2w": (1.00, 0.56, 0.40),
    "FLAIR": (0.14, 0.70, 0.55),
}

# What the parts of a lesion look like where they fill a voxel, in the same units. The signs follow
# the textbooks (gliosis and oedema bright on T2w and FLAIR and dark on T1w; an old bleed dark with
# a darker haemosiderin rim, its inside bright on T1w; a rim of solid tumour round a core of fluid
# that FLAIR does not wholly null). No contrast agent.
LESION: dict[str, dict[str, float]] = {
    "wmh": {"T1w": 0.74, "T2w": 0.72, "FLAIR": 0.92},
    "oedema": {"T1w": 0.70, "T2w": 0.80, "FLAIR": 0.92},
    "ring": {"T1w": 0.80, "T2w": 0.68, "FLAIR": 1.02},
    "core": {"T1w": 0.42, "T2w": 0.92, "FLAIR": 0.62},
    "infarct": {"T1w": 0.48, "T2w": 0.85, "FLAIR": 0.98},
    "rim": {"T1w": 0.55, "T2w": 0.16, "FLAIR": 0.16},
    "bleed": {"T1w": 1.12, "T2w": 0.36, "FLAIR": 0.34},
}

# How far a part replaces the tissue it fills: folds show through where the rest of 1 is left.
OPACITY = {
    "wmh": 0.9,
    "oedema": 0.85,
    "ring": 1.0,
    "core": 1.0,
    "infarct": 0.8,
    "rim": 1.0,
    "bleed": 1.0,
}

# Relative standard deviation of the intensity inside a part, on the scale of a fifth of the lesion.
MOTTLE = {
    "wmh": 0.05,
    "oedema": 0.05,
    "ring": 0.08,
    "core": 0.15,
    "infarct": 0.06,
    "rim": 0.1,
    "bleed": 0.3,
}

UNIT = 2000.0  # stored value of the intensity 1
LARGEST = 4095.0  # scanners store 12 bits

_APPEARANCE, _NOISE = 3, 4  # random streams of a subject


class Appearance:
    """How one subject looks in one modality: tissue means, texture, gain and bias field.

    Args:
        config: amplitudes.
        subject: index from 0.
        modality: one of `MODALITIES`.
    """

    def __init__(self, config: PhantomConfig, subject: int, modality: str) -> None:
        rng = stream(config.seed, subject, _APPEARANCE, MODALITIES.index(modality))
        self.config = config
        self.modality = modality
        self.means = np.array(TISSUE[modality]) * (
            1.0 + config.tissue_variation * clipped_normal(rng, 3)
        )
        self.gain = float(np.exp(config.gain_variation * clipped_normal(rng, 1)[0]))
        self._bias = SmoothField(rng, 75.0, 300.0)
        self._slow = SmoothField(rng, 14.0)
        self._fine = SmoothField(rng, 2.5)

    def signal(self, points: np.ndarray, fractions: np.ndarray) -> np.ndarray:
        """Return the signal (N,) of tissue at points (N, 3) in mm, without gain, bias and noise.

        Args:
            points: where the tissue sits in the subject before any mass effect.
            fractions: (N, 3) CSF, GM, WM, adding up to 1.
        """
        # Fluid has no structure.
        texture = (1.0 - fractions[:, 0]) * self.texture(points)
        return np.asarray((fractions @ self.means) * (1.0 + texture))

    def texture(self, points: np.ndarray) -> np.ndarray:
        """Return the relative deviation (N,) of the signal of tissue at points (N, 3) in mm."""
        if self.config.texture == 0:
            return np.zeros(len(points))
        mixed = 0.6 * self._slow(points) + 0.8 * self._fine(points)
        return np.asarray(self.config.texture * mixed)

    def receive(self, points: np.ndarray, signal: np.ndarray) -> np.ndarray:
        """Return the signal (N,) times gain and bias field at points (N, 3) in mm."""
        factor = np.full(len(points), self.gain)
        if self.config.bias > 0:
            factor = factor * np.exp(self.config.bias * self._bias(points))
        return np.asarray(signal * factor)


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Return the magnitude of a signal with Gaussian noise in both receiver channels.

    Args:
        signal: any shape, 0 or more.
        sigma: standard deviation of the noise of a channel, in units of the signal. Where the
            signal is 0 the result follows the Rayleigh distribution, whose mean is
            ``sigma * sqrt(pi / 2)`` (Gudbjartsson and Patz, MRM 1995).
        rng: source of randomness.
    """
    noise = sigma * rng.standard_normal((2, *signal.shape))
    return np.asarray(np.hypot(signal + noise[0], noise[1]))


def noise_stream(
    config: PhantomConfig, subject: int, modality: str, part: int
) -> np.random.Generator:
    """Return the generator of the noise of one image: slice ``part`` or volume 0 of a subject."""
    return stream(config.seed, subject, _NOISE, MODALITIES.index(modality), part)


def store(signal: np.ndarray) -> np.ndarray:
    """Return the signal as 16-bit integers, 0 to 4095, as a scanner would store it."""
    return np.clip(np.rint(signal * UNIT), 0.0, LARGEST).astype(np.uint16)
