"""Boundaries of likelihoods, and lesions that are put into healthy images."""

from __future__ import annotations

import numpy as np
import torch

from normscan.methods.base import Batch
from normscan.methods.supervised.boundaries import (
    Boundary,
    pulled_and_pushed,
    transplanted,
)
from normscan.registry import card
from normscan.rng import Rng


def test_a_boundary_is_a_quantile():
    healthy = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, lower = Boundary(0.05, 0.1).among(healthy)
    assert float(low) == float(np.quantile(healthy, 0.05, method="higher"))
    np.testing.assert_allclose(lower, low - 0.1)


def test_what_lies_beyond_its_boundary_alone_has_a_gradient():
    healthy = torch.linspace(-30, 0, 100, dtype=torch.float64, requires_grad=True)
    anomalous = torch.linspace(-40, 0, 50, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(100, dtype=torch.float64), torch.ones(50, dtype=torch.float64)
    boundary = Boundary(0.1, 0.1)
    pulled, pushed = pulled_and_pushed(healthy, anomalous, boundary, ones)
    (pulled + pushed).backward()
    low, lower = (10 * float(b) for b in boundary.among(healthy / 10))
    with torch.no_grad():
        # A step against the gradient raises healthy ones below, and lowers anomalous ones above.
        assert ((healthy.grad < 0) == (healthy <= low)).all() and (healthy.grad <= 0).all()
        assert ((anomalous.grad > 0) == (anomalous >= lower)).all() and (anomalous.grad >= 0).all()
        far = np.maximum(0, anomalous.numpy() - lower) / 10
        np.testing.assert_allclose(pushed, far[anomalous.numpy() >= lower].mean())
    nothing = torch.zeros(0, dtype=torch.float64)
    assert float(pulled_and_pushed(healthy, nothing, boundary, (ones[0], nothing))[1]) == 0


def pictures() -> Batch:
    """Four flat healthy images and four brighter ones with a bright lesion."""
    image = torch.full((8, 1, 40, 40), 0.3)
    image[4:] = 0.5
    lesion = torch.zeros(8, 1, 40, 40, dtype=torch.bool)
    lesion[4:, :, 15:25, 15:25] = True
    image[lesion] = 1.0
    foreground = torch.zeros_like(lesion)
    foreground[:, :, 5:35, 5:35] = True
    label = torch.tensor([0] * 4 + [1] * 4)
    rng = Rng(3)
    return Batch(image, foreground, rng, torch.zeros(8), label=label, lesion=lesion)


def test_lesions_are_put_into_healthy_images():
    batch = pictures()
    image, lesion = transplanted(batch, 1.0)
    assert torch.equal(image[:4], batch.image[:4]) and not lesion[:4].any()
    for own, where in zip(image[4:, 0], lesion[4:, 0], strict=True):
        assert where.any() and not (where & ~batch.foreground[0, 0]).any()
        assert (own[~where] == 0.3).all(), "around it lies the healthy image"
        assert own[where].median() > 0.6
    kept, same = transplanted(batch, 0.0)
    assert torch.equal(kept, batch.image) and torch.equal(same, batch.lesion)


def test_an_image_whose_lesion_nobody_drew_is_passed_over():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = card("bgad").create(**card("bgad").arguments("tiny", places=8))
    batch = pictures()
    batch.lesion[4:] = False
    seen = []
    method.guided = lambda tap, healthy, sick: seen.append((len(healthy), len(sick))) or {}
    method.fibres = 10**6
    method.loss(batch, "boundary", "network")
    places = [10 * 10, 5 * 5]
    assert seen == [(4 * n, 0) for n in places]
