"""The white rim of a windowed CT at the quality gate."""

from __future__ import annotations

import numpy as np
import pytest

from normscan.quality import Gate
from normscan.quality.measures import bright_rim
from normscan.scan import Scan


def ringed(depth: float, seed: int = 0) -> np.ndarray:
    """A grey disc with radius 60 whose rim is white down to a depth, in radii."""
    rows, columns = np.ogrid[-80:80, -80:80]
    radius = np.hypot(rows, columns) / 60
    image = np.where(radius < 1, 100.0, 0.0) + 10 * np.random.default_rng(seed).random(radius.shape)
    image[(radius < 1) & (radius > 1 - depth)] = 255
    image[:8, :8] = 255  # something is white in every picture
    return image


@pytest.mark.parametrize("depth", [0.0, 0.06, 0.09, 0.3])
def test_a_bright_rim_by_its_area(depth):
    image = ringed(depth)[None]
    reached = 1 - min(max(depth, 0.03), 0.15)
    expected = (0.97**2 - reached**2) / (0.97**2 - 0.85**2)
    assert bright_rim(image, image[0] > 50) == pytest.approx(expected, abs=0.08)


def test_a_white_rim_is_that_of_a_ct():
    """Bone is white in a windowed CT; a gate of either kind refuses the other's pictures."""
    dark, white = ([Scan.from_array(ringed(d, i)) for i in range(20)] for d in (0.0, 0.15))
    gate = Gate.fit([*dark[:19], white[19]])  # one of another kind doesn't open it
    verdict = gate.check(white[0])
    assert verdict.status == "refuse" and verdict.seems == "a CT, by its white rim"
    assert any("100% of the rim" in reason for reason in verdict.reasons)
    assert not any("of the rim" in reason for reason in gate.check(dark[19]).reasons)
    other = Gate.fit(white[:19]).check(dark[0])
    assert any("0% of the rim" in reason for reason in other.reasons)
    state = gate.to_dict()
    del state["limits"]["rim"]  # as stored by a version that didn't look at it
    assert not any(
        "of the rim" in reason for reason in Gate.from_dict(state).check(white[0]).reasons
    )
