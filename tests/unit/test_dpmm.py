"""The Dirichlet-process mixture against scipy's densities, a loop of EM and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import digamma
from scipy.stats import multivariate_normal
from sklearn.mixture import BayesianGaussianMixture

from normscan.errors import ArgumentError
from normscan.rng import Rng
from normscan.scores.dpmm import DirichletMixture


def cloud(rng, n=600):
    """Three clusters in the plane, and from which each point comes."""
    means = np.array([[0.0, 0.0], [6.0, 1.0], [-3.0, 7.0]])
    scales = np.array([[1.0, 0.4], [0.5, 1.2], [0.8, 0.8]])
    which = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    return means[which] + scales[which] * rng.normal(size=(n, 2)), which


def mixture(covariance="diag", components=6, dim=2, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DirichletMixture(dim, components, covariance, **options).double()


def learn(model, x, steps, rate=1.0):
    x = torch.tensor(x)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(x).backward()
        optimizer.step()


def spread_of(model):
    _, _, spread = model.components()
    return spread if model.full else torch.diag_embed(spread)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_densities_and_distances_against_scipy(rng, covariance):
    x, _ = cloud(rng, 50)
    model = mixture(covariance)
    model.start(torch.tensor(x), Rng(1))
    learn(model, x, 3)
    weights, means, _ = (t.numpy() for t in model.components())
    spread = spread_of(model).numpy()
    joint = np.stack(
        [
            w + multivariate_normal(m, c).logpdf(x)
            for w, m, c in zip(weights, means, spread, strict=True)
        ],
        axis=1,
    )
    points = torch.tensor(x)
    np.testing.assert_allclose(model.log_joint(points), joint, rtol=1e-6, atol=1e-6)
    nll = -np.log(np.exp(joint).sum(1))
    np.testing.assert_allclose(model.distance(points, "nll"), nll, rtol=1e-6)
    away = x[:, None] - means
    squared = np.einsum("nki,kij,nkj->nk", away, np.linalg.inv(spread), away)
    np.testing.assert_allclose(
        model.distance(points, "mahalanobis"), np.sqrt(squared.min(1)), rtol=1e-5, atol=1e-6
    )
    lengths = np.linalg.norm(away, axis=2).min(1)
    np.testing.assert_allclose(model.distance(points, "euclidean"), lengths, rtol=1e-6)
    cosine = (x @ means.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(model.distance(points, "cosine"), 1 - cosine.max(1), atol=1e-9)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_one_update_by_hand(rng, covariance):
    x, _ = cloud(rng, 80)
    model = mixture(covariance, regularisation=1e-3)
    model.start(torch.tensor(x), Rng(2))
    joint = model.log_joint(torch.tensor(x)).numpy()
    r = np.exp(joint - joint.max(1, keepdims=True))
    r /= r.sum(1, keepdims=True)
    learn(model, x, 1)
    shares = r.mean(0)
    weights, means, _ = (t.numpy() for t in model.components())
    rest, expected = 1.0, []
    for k in range(6):  # concentration 2, so one point's worth of the stick stays behind
        ratio = shares[k] / (shares[k] + shares[k + 1 :].sum() + 1 / 80)
        expected.append(rest * ratio)
        rest *= 1 - ratio
    np.testing.assert_allclose(np.exp(weights), expected, rtol=1e-9)
    assert 0.9 < np.exp(weights).sum() < 1
    centres = r.T @ x / r.sum(0)[:, None]
    np.testing.assert_allclose(means, centres, rtol=1e-9, atol=1e-12)
    for k, got in enumerate(spread_of(model).numpy()):
        away = x - centres[k]
        moment = (r[:, k, None] * away).T @ away / r[:, k].sum() + 1e-3 * np.eye(2)
        np.testing.assert_allclose(
            got, moment if model.full else np.diag(np.diag(moment)), 1e-6, 1e-9
        )


def test_concentration_by_hand(rng):
    x, _ = cloud(rng, 80)
    model = mixture()
    model.start(torch.tensor(x), Rng(2))
    learn(model, x, 1)
    assert model.concentration == 2, "there is nothing to learn it from yet"
    shares = model.shares.detach().numpy().copy()
    learn(model, x, 1)
    tails = [shares[k + 1 :].sum() for k in range(6)]
    total = sum(
        digamma(80 * (shares[k] + tails[k]) + 3) - digamma(80 * tails[k] + 2) for k in range(5)
    )
    assert model.concentration.item() == pytest.approx(max(1, 5 / total), rel=1e-6)


def test_a_running_average_forgets_by_its_rate(rng):
    x, _ = cloud(rng, 80)
    model = mixture()
    model.start(torch.tensor(x), Rng(2))
    before = [p.detach().clone() for p in model.parameters()]
    probe = mixture()
    probe.load_state_dict(model.state_dict())
    fresh = probe.statistics(torch.tensor(x))
    learn(model, x, 1, rate=0.2)
    for p, old, new in zip(model.parameters(), before, fresh, strict=True):
        torch.testing.assert_close(p.detach(), 0.8 * old + 0.2 * new)


@pytest.mark.parametrize("covariance", ["diag", "full"])
def test_finds_what_scikit_learn_finds(rng, covariance):
    """The variational mixture has priors that ours lacks, so clusters are compared, not components."""
    x, which = cloud(rng)
    model = mixture(covariance, 8)
    model.start(torch.tensor(x), Rng(0))
    learn(model, x, 100)
    theirs = BayesianGaussianMixture(
        n_components=8, covariance_type=covariance, n_init=2, max_iter=500, random_state=0,
    ).fit(x)  # fmt: skip
    weights, means, _ = (t.numpy() for t in model.components())
    clusters = np.stack([x[which == k].mean(0) for k in range(3)])

    def shares(weights, means):
        nearest = cdist(means, clusters).argmin(1)
        return np.bincount(nearest, weights, minlength=3)

    ours = shares(np.exp(weights), means)
    np.testing.assert_allclose(ours, shares(theirs.weights_, theirs.means_), atol=0.03)
    np.testing.assert_allclose(ours, np.bincount(which) / 600, atol=0.03)
    fresh = torch.tensor(cloud(rng)[0])
    nll = float(model.distance(fresh, "nll").mean())
    assert nll == pytest.approx(-theirs.score(fresh), abs=0.1)
    far = torch.tensor([[20.0, -20.0]]).double()
    for kind in ("nll", "mahalanobis", "euclidean"):
        assert model.distance(far, kind) > model.distance(fresh, kind).max()


def test_unused_components_are_pruned_and_the_rest_can_be_stored(rng):
    x, _ = cloud(rng, 80)
    points = torch.tensor(x)
    model = mixture()
    model.start(points, Rng(0))
    learn(model, x, 5)
    for p in model.parameters():
        p.data[[1, 4]] *= 1e-8
    before = model.distance(points, "nll")
    model.prune()
    assert len(model.shares) == 4 and len(model.components()[1]) == 4
    torch.testing.assert_close(model.distance(points, "nll"), before, atol=1e-5, rtol=1e-5)
    other = torch.nn.ModuleList([mixture()])
    other.load_state_dict({f"0.{k}": v for k, v in model.state_dict().items()})
    assert torch.equal(other[0].distance(points, "nll"), model.distance(points, "nll"))


def test_fewer_points_than_components(rng):
    x = rng.normal(size=(5, 3))
    model = mixture(components=12, dim=3)
    model.start(torch.tensor(x), Rng(0))
    learn(model, x, 5)
    for kind in ("cosine", "mahalanobis", "euclidean", "nll"):
        assert torch.isfinite(model.distance(torch.tensor(x), kind)).all()


@pytest.mark.parametrize("wrong", [{"components": 1}, {"concentration": 0.5}])
def test_impossible_mixtures_are_refused(wrong):
    with pytest.raises(ArgumentError, match="a mixture needs"):
        DirichletMixture(2, **{"components": 4, **wrong})
