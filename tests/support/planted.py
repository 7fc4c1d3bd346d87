"""A head to plant lesions in, for tests."""

from __future__ import annotations

import numpy as np

from normscan.planting.sites import BlobSite
from normscan.scan import Scan


def head(seed=0, shape=(96, 80), spacing=1.0, offset=0.0, scale=1.0, affine=None):
    """A noisy ellipse or ellipsoid, and its mask."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    mask = sum(a**2 for a in axes) < 0.81
    image = np.where(mask, 5 + rng.normal(0, 0.4, shape), 0)
    scan = Scan.from_array((offset + scale * image).astype(np.float32), spacing, affine)
    return scan, mask


def site(scan, mask, largest=20.0, seed=1):
    return BlobSite("p", "s", scan, mask, np.random.default_rng(seed), largest)
