"""The ensemble of predictors of a beta-VAE: projection, units, arguments."""

from __future__ import annotations

import pytest
import torch
from tests.unit.test_variational import batch, create

from normscan.errors import ArgumentError


def test_projection_by_hand_and_its_energy_falls():
    method, b = create("beta_vae_loc", projection_steps=1), batch()
    x = b.image.clone().requires_grad_()
    restored = method.network.decode(method.network.encode(x)[0])
    # At its beginning the anchor has no slope.
    (0.5 * (x - restored).square().sum()).backward()
    expected = b.image - 0.5 * x.grad * (x - restored).detach().square()
    torch.testing.assert_close(method.projected(b.image), expected)

    method = create("beta_vae_loc", projection_steps=10)
    moved = method.projected(b.image)

    def energy(seen):
        away = (seen - b.image).abs().flatten(1).sum(1)
        return (method.terms(seen)["error"] + 0.05 * away).detach()

    assert (energy(moved) < energy(b.image)).all()


def test_each_map_is_counted_in_units_of_healthy_scans():
    method, b = create("beta_vae_loc", predictors=("residual", "error", "projection")), batch(3)
    b.foreground[:, :, :5] = False
    parts = method.each_map(b)
    method.fit([b])
    expected = sum(m / m[b.foreground].mean() for m in parts) / 3
    torch.testing.assert_close(method.maps(b).map, expected)
    torch.testing.assert_close(
        method.maps(b).map[b.foreground].mean(), torch.tensor(1.0, dtype=torch.float64)
    )


def test_units_come_from_all_batches():
    method, whole = create("beta_vae_loc"), batch(3)
    parts = [batch(3), batch(3)]
    for part, rows in zip(parts, (slice(0, 1), slice(1, 3)), strict=True):
        part.image, part.foreground = whole.image[rows], whole.foreground[rows]
    method.fit(parts)
    found = method.units.clone()
    method.fit([whole])
    torch.testing.assert_close(found, method.units)


def test_an_unknown_predictor_is_refused():
    with pytest.raises(ArgumentError, match="one or more of residual"):
        create("beta_vae_loc", predictors=("kl",))
