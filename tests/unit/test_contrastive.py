"""Contrast and the mixture over codes, against scipy, scikit-learn and a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.objectives.contrastive import nt_xent
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.mixture import FullMixture


def test_contrast_is_the_cross_entropy_of_the_article():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    both = np.concatenate([a, b])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    losses = []
    for i in range(8):
        others = [both[i] @ both[k] / 0.3 for k in range(8) if k != i]
        losses.append(logsumexp(others) - both[i] @ both[(i + 4) % 8] / 0.3)
    ours = nt_xent(torch.from_numpy(a), torch.from_numpy(b), 0.3)
    assert float(ours) == pytest.approx(np.mean(losses), rel=1e-9)


@pytest.mark.parametrize("components", [1, 3])
def test_the_density_is_that_of_scipy(components: int):
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(m, 0.5, (30, 4)) for m in (-2, 0, 3)])
    ours = FullMixture(4, components, ridge=1e-5, tolerance=1e-2)
    ours.fit([torch.from_numpy(x[:50]), torch.from_numpy(x[50:])])
    scaled = (x - x.mean(0)) / (x.std(0, ddof=1) + 1e-5)
    theirs = GaussianMixture(
        components, tol=1e-2, reg_covar=1e-5, max_iter=1000, random_state=0
    ).fit(scaled)  # fmt: skip
    parts = zip(theirs.weights_, theirs.means_, theirs.covariances_, strict=True)
    logs = [np.log(w) + multivariate_normal(m, c).logpdf(scaled) for w, m, c in parts]
    assert ours(torch.from_numpy(x)).numpy() == pytest.approx(-logsumexp(logs, axis=0), rel=1e-6)


def test_a_mixture_says_how_many_images_it_needs():
    with pytest.raises(ArgumentError, match="mixture of 3"):
        FullMixture(2, 3).fit([torch.zeros(2, 2)])


def test_places_agree_with_the_same_places_of_the_next_image():
    method = card("intra_inter_correlation").create(
        **card("intra_inter_correlation").arguments("tiny", places=4)
    )
    points = torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))
    image = torch.zeros(3, 1, 4, 4)
    batch = Batch(image, image.bool(), Rng(1), torch.zeros(3))
    drawn = Rng(1).uniform((3, 9))[0].argsort()[:4]
    known = [nt_xent(points[i, drawn], points[(i + 1) % 3, drawn], 0.1) for i in range(3)]
    torch.testing.assert_close(method.agreement(points, batch), sum(known) / 3)
