"""Densities of codes against scipy, scikit-learn, and mixtures with known parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import digamma
from sklearn.svm import OneClassSVM as Reference

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.density import (
    MultipleScaledMixture,
    OneClassSVM,
    rotate,
    solve_freedom,
)


def rotation(rng, dim):
    return np.linalg.qr(rng.normal(size=(dim, dim)))[0]


def sample(rng, n, centre, axes, scale, freedom):
    """Independent t-values along the axes: the definition of a multiple scaled t."""
    t = np.stack([stats.t.rvs(v, size=n, random_state=rng) for v in freedom], 1)
    return centre + (t * np.sqrt(scale)) @ axes.T


def test_density_is_a_product_of_t_densities_along_the_axes(rng):
    k, d = 2, 3
    share, centre = np.array([0.3, 0.7]), rng.normal(size=(k, d))
    axes = np.stack([rotation(rng, d) for _ in range(k)])
    scale, freedom = rng.uniform(0.5, 2, (k, d)), rng.uniform(1, 20, (k, d))
    mixture = MultipleScaledMixture(d)
    mixture._set(*(torch.tensor(v) for v in (share, centre, axes, scale, freedom)))
    x = rng.normal(size=(20, d))
    expected = np.zeros(20)
    for i in range(k):
        y = (x - centre[i]) @ axes[i]
        parts = stats.t.pdf(y, freedom[i], scale=np.sqrt(scale[i]))
        expected += share[i] * parts.prod(1)
    np.testing.assert_allclose(mixture.log_density(torch.tensor(x)).exp(), expected, rtol=1e-10)


def test_likelihood_never_falls_and_a_known_mixture_is_found(rng):
    axes = [rotation(rng, 3), rotation(rng, 3)]
    centre = np.array([[0.0, 0, 0], [9, 9, 0]])
    scale, freedom = np.array([[4, 1, 0.25], [1, 0.3, 3]]), np.array([[3, 30, 5], [4, 8, 30]])
    n = (3000, 1500)
    x = np.vstack([sample(rng, n[i], centre[i], axes[i], scale[i], freedom[i]) for i in (0, 1)])
    mixture = MultipleScaledMixture(3, iterations=150, tolerance=1e-6)
    history = mixture.fit_components(torch.tensor(x), 2)
    assert (np.diff(history) > -1e-9).all() and len(history) > 5
    order = mixture.share.argsort(descending=True).tolist()
    np.testing.assert_allclose(mixture.share[order], [2 / 3, 1 / 3], atol=0.02)
    np.testing.assert_allclose(mixture.centre[order], centre, atol=0.2)
    for i, k in enumerate(order):
        alike = np.abs(axes[i].T @ mixture.rotation[k].numpy())
        match = alike.argmax(1)
        assert alike.max(1).min() > 0.95 and sorted(match) == [0, 1, 2]
        np.testing.assert_allclose(mixture.scale[k][match], scale[i], rtol=0.25)
        assert mixture.freedom[k][match][freedom[i] < 10].max() < 15
    truth = MultipleScaledMixture(3)
    share = np.array([2 / 3, 1 / 3])
    truth._set(*(torch.tensor(np.array(v)) for v in (share, centre, axes, scale, freedom)))
    assert history[-1] > float(truth.log_density(torch.tensor(x)).mean())


def test_bic_chooses_two_of_two_clusters_and_outliers_score_high(rng):
    x = np.vstack([rng.normal(size=(300, 2)), rng.normal(size=(300, 2)) + 12])
    mixture = MultipleScaledMixture(2, (1, 2, 4))
    mixture.fit(torch.tensor(x, dtype=torch.float32))
    assert len(mixture.share) == 2
    score = mixture(torch.tensor([[0.0, 0], [12, 12], [6, 6], [40, -10]]))
    assert score[:2].max() < 1.5 and score[2] > 3 and score[3] > score[2]


def test_proximity_by_density_is_the_distance_to_the_sum_of_the_peaks(rng):
    """Against scipy's t-densities along the axes; 0 at the centre of a single component."""
    share, centre = np.array([0.4, 0.6]), rng.normal(size=(2, 3))
    axes = np.stack([rotation(rng, 3) for _ in range(2)])
    scale, freedom = rng.uniform(0.5, 2, (2, 3)), rng.uniform(1, 20, (2, 3))
    mixture = MultipleScaledMixture(3, proximity="density")
    mixture._set(*(torch.tensor(v) for v in (share, centre, axes, scale, freedom)))
    x = rng.normal(size=(30, 3)) * 3

    def densities(points):
        y = np.einsum("knd,kde->nke", points, axes)
        return stats.t.pdf(y, freedom, scale=np.sqrt(scale)).prod(2) @ share

    peaks = densities(np.zeros((2, 1, 3)))
    expected = np.log(peaks / densities(x[None] - centre[:, None]))
    found = mixture(torch.tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.min() >= 0
    one = (np.ones(1), centre[:1], axes[:1], scale[:1], freedom[:1])
    mixture._set(*(torch.tensor(v) for v in one))
    assert float(mixture(torch.tensor(centre[:1]))) == pytest.approx(0, abs=1e-12)


def test_no_axis_is_narrower_than_the_floor(rng):
    """An axis on which most points share one value: the floor bounds what leaves that heap."""
    x = rng.normal(size=(800, 3))
    x[:, 2] *= rng.random(800) < 0.02
    floor = 0.05 * x.var(0).mean()
    scores = []
    for share in (1e-6, 0.05):
        mixture = MultipleScaledMixture(3, (1,), floor=share)
        history = mixture.fit_components(torch.tensor(x), 1)
        assert (np.diff(history) > -1e-9).all()
        scores.append(float(mixture(torch.tensor([[0.0, 0.0, 1.0]]))))
        narrowest = float(mixture.scale.min())
        assert (narrowest == pytest.approx(floor)) if share == 0.05 else (narrowest < floor / 100)
    assert scores[0] > 10 * scores[1]


def test_rotations_reach_the_minimum(rng):
    """Common axes of matrices that share them are found; the sum falls with each sweep."""
    axes = rotation(rng, 4)
    scale = np.array([[1.0, 2, 3, 4]])
    forms = np.stack([axes @ np.diag(rng.uniform(0.1, 5, 4)) @ axes.T for _ in range(4)])[None]

    def value(d):
        return sum(d[0, :, m] @ forms[0, m] @ d[0, :, m] / scale[0, m] for m in range(4))

    turned = torch.eye(4, dtype=torch.double)[None]
    before = value(turned.numpy())
    for _ in range(30):
        turned = rotate(turned, torch.tensor(forms), torch.tensor(scale))
        now = value(turned.numpy())
        assert now <= before + 1e-10
        before = now
    torch.testing.assert_close(turned[0] @ turned[0].T, torch.eye(4, dtype=torch.double))
    # Each axis of the best rotation is one of the shared axes: an assignment.
    from scipy.optimize import linear_sum_assignment

    cost = np.array(
        [[axes[:, a] @ forms[0, m] @ axes[:, a] / scale[0, m] for a in range(4)] for m in range(4)]
    )
    rows, columns = linear_sum_assignment(cost)
    assert before == pytest.approx(cost[rows, columns].sum(), rel=0.05)


def test_degrees_of_freedom_solve_their_equation():
    for v in (0.7, 3.0, 50.0):
        deficit = -(np.log(v / 2) - digamma(v / 2) + 1)
        assert float(solve_freedom(torch.tensor([deficit]))) == pytest.approx(v, rel=1e-4)


def test_one_class_machine_against_scikit_learn(rng):
    x = rng.normal(size=(200, 4)) * [1, 2, 3, 1]
    mine = OneClassSVM(4, nu=0.1)
    mine.fit(torch.tensor(x))
    reference = Reference(nu=0.1, gamma=float(mine.gamma)).fit(x)
    points = rng.normal(size=(50, 4)) * 3
    expected = reference.dual_coef_.sum() - (reference.score_samples(points))
    np.testing.assert_allclose(mine(torch.tensor(points)), expected, atol=1e-8)
    assert mine(torch.tensor(points)).min() >= 0


@pytest.mark.parametrize("criterion", ["mmst", "svm", "error"])
@pytest.mark.parametrize("stride", [1, 3])
def test_each_criterion_fits_and_stores(criterion, stride):
    entry = card("parkinson_sae")
    arguments = entry.arguments("tiny", criterion=criterion, stride=stride, regions=2, samples=200)
    torch.manual_seed(0)
    method = entry.create(**arguments).eval()
    images = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    foreground = torch.ones(8, 1, 32, 32, dtype=torch.bool)
    foreground[:, :, :6] = False
    batch = Batch(images, foreground, Rng(3), torch.zeros(8))
    method.fit([batch])
    maps = method.maps(batch)
    full = criterion == "error" or stride == 1
    assert maps.map.shape == (8, 1, 32, 32) if full else (8, 1, 11, 11)
    assert maps.score.min() >= 0 and maps.score.max() <= 1
    again = entry.create(**arguments).eval()
    again.load_weights(method.state_dict())
    torch.testing.assert_close(again.maps(batch).map, maps.map)


@pytest.mark.parametrize("sizes", [(9,), (4, 3, 2), (2,)])
def test_the_threshold_is_the_median_of_the_held_out_controls(sizes):
    """Every fourth image is held out, across batches; of fewer than four images all are used."""
    entry = card("parkinson_sae")
    torch.manual_seed(0)
    method = entry.create(**entry.arguments("tiny", criterion="error", held_out=0.25)).eval()
    n = sum(sizes)
    images = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    images[min(n, 4) - 1] *= 100  # an odd control
    foreground = torch.zeros(n, 1, 32, 32, dtype=torch.bool)
    for i in range(n):
        foreground[i, :, 2 : 20 + i, 3:30] = True
    whole = Batch(images, foreground, Rng(list(range(n))), torch.zeros(n))
    values = method.maps(whole).map
    held = [3, 7] if n > 4 else [0, 1]
    own = []
    for i in held:
        inside = np.sort(values[i][foreground[i]].numpy())
        own.append(inside[int(0.98 * len(inside))])
    parts = zip(images.split(sizes), foreground.split(sizes), strict=True)
    method.fit([Batch(x, mask, Rng(5), torch.zeros(len(x))) for x, mask in parts])
    assert float(method.threshold) == pytest.approx(float(np.median(own)), rel=1e-5)


def test_images_without_foreground_leave_nothing_to_fit():
    entry = card("parkinson_sae")
    method = entry.create(**entry.arguments("tiny")).eval()
    nothing = torch.zeros(8, 1, 32, 32, dtype=torch.bool)
    batch = Batch(torch.rand(8, 1, 32, 32), nothing, Rng(0), torch.zeros(8))
    with pytest.raises(ArgumentError, match="foreground"):
        method.fit([batch])


def test_the_image_score_is_the_share_of_foreground_above_the_threshold():
    entry = card("parkinson_sae")
    method = entry.create(**entry.arguments("tiny", criterion="error")).eval()
    images = torch.rand(2, 1, 32, 32)
    foreground = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    foreground[:, :, 4:20, 3:30] = True
    batch = Batch(images, foreground, Rng([1, 2]), torch.zeros(2))
    values = method.maps(batch).map
    method.threshold = values.median()
    for i in range(2):
        expected = (values[i][foreground[i]] > method.threshold).float().mean()
        assert float(method.maps(batch).score[i]) == pytest.approx(float(expected), abs=1e-5)
