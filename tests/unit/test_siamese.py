"""One-class support vector machines on patch codes, against scikit-learn and numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.svm import OneClassSVM as Reference

from normscan.methods.base import Batch
from normscan.methods.features.siamese import standardised
from normscan.networks.patch import patches_at
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.density import OneClassSVM


def build(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card("siamese_ocsvm").create(
            **card("siamese_ocsvm").arguments(
                "tiny", **{"size": 20, "fitted": "patient", "stride": 1, **changes}
            )
        )


def batch(n: int = 3, channels: int = 1, seed: int = 1, size: int = 20):
    g = torch.Generator().manual_seed(seed)
    image = torch.rand(n, channels, size, size, generator=g)
    foreground = torch.zeros(n, 1, size, size, dtype=torch.bool)
    foreground[..., 3:-3, 2:-2] = True
    return Batch(image, foreground, Rng(list(range(n))), torch.full((n,), 0.5))


def decisions(known: np.ndarray, x: np.ndarray, nu: float) -> np.ndarray:
    """scikit-learn's anomaly of standardised points, with the median distance as width."""
    centre, spread = known.mean(0), known.std(0)
    known, x = (known - centre) / spread, (x - centre) / spread
    gamma = 1 / (2 * np.median(pdist(known)) ** 2)
    fitted = Reference(kernel="rbf", nu=nu, gamma=gamma).fit(known)
    return -fitted.decision_function(x) / fitted.dual_coef_.sum()


def z(values: np.ndarray) -> np.ndarray:
    return np.maximum((values - values.mean()) / values.std(), 0)


def test_the_median_distance_is_the_kernels_width(rng):
    x = rng.normal(size=(60, 3))
    machine = OneClassSVM(3, 0.1, "median")
    machine.fit(torch.tensor(x))
    assert float(machine.gamma) == pytest.approx(1 / (2 * np.median(pdist(x)) ** 2))
    fitted = Reference(kernel="rbf", nu=0.1, gamma=float(machine.gamma)).fit(x)
    found = machine(torch.tensor(x))
    expected = -fitted.decision_function(x)
    np.testing.assert_allclose(found - machine.boundary, expected, atol=1e-6)


def test_standardised_by_hand(rng):
    scores = rng.normal(size=(2, 1, 6, 5))
    inside = rng.random((2, 1, 6, 5)) < 0.5
    scores[~inside] = 1e9
    found = standardised(torch.tensor(scores), torch.tensor(inside)).numpy()
    for i in range(2):
        np.testing.assert_allclose(found[i][inside[i]], z(scores[i][inside[i]]))
    assert not found[~inside].any()
    assert not standardised(torch.ones(1, 1, 3, 3), torch.zeros(1, 1, 3, 3, dtype=bool)).any()


def codes_of(method, x: Batch) -> np.ndarray:
    """(B, latent, 20, 20) codes, patch by patch."""
    every = torch.arange(400).expand(len(x), -1)
    with torch.no_grad():
        codes = method.network.encode(patches_at(x.image, every).flatten(0, 1))
    return codes.reshape(len(x), 400, -1).transpose(1, 2).reshape(len(x), -1, 20, 20).numpy()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_machine_for_each_patient(channels: int):
    """All of the foreground fits into the sample, so the machine is known."""
    method = build(samples=400, channels=channels, nu=0.1).double().eval()
    x = batch(channels=channels)
    x.image = x.image.double()
    codes, found = codes_of(method, x), method.maps(x).map.numpy()
    for i in range(3):
        mask = x.foreground[i, 0].numpy()
        points = codes[i][:, mask].T
        np.testing.assert_allclose(found[i, 0][mask], z(decisions(points, points, 0.1)), atol=1e-5)
        assert not found[i, 0][~mask].any()


def test_the_patients_sample_is_random_and_of_the_foreground(monkeypatch):
    method = build(samples=30).eval()
    sizes = []
    inner = OneClassSVM.fit
    monkeypatch.setattr(
        OneClassSVM, "fit", lambda self, x, seed=0: (sizes.append(x.clone()), inner(self, x, seed))
    )
    first = method.maps(batch()).map
    assert torch.equal(method.maps(batch()).map, first)
    x = batch()
    alone = Batch(x.image[1:2], x.foreground[1:2], Rng([1]), x.position[1:2])
    torch.testing.assert_close(method.maps(alone).map, first[1:2], atol=1e-3, rtol=1e-3)
    other = batch()
    other.rng = Rng([7, 8, 9])
    assert not torch.equal(method.maps(other).map, first)
    assert {len(s) for s in sizes} == {30}
    # Outside the foreground anything may be, beyond the patches that reach in.
    x = batch(size=40)
    x.foreground[:] = False
    x.foreground[..., 10:16, 10:16] = True
    changed = x.image.clone()
    changed[..., 30:, :] = 50
    maps = [
        build(size=40).eval().maps(Batch(i, x.foreground, Rng([0, 1, 2]), x.position)).map
        for i in (x.image, changed)
    ]
    assert torch.equal(*maps)


@pytest.mark.parametrize("place", [(20, 30), (44, 12)])
def test_what_is_rare_in_an_image_stands_out(place):
    """A bright spot of 3 x 3 pixels in noise, even with random weights."""
    x = batch(1, size=64)
    x.image = 0.4 + 0.05 * x.image
    i, j = place
    x.image[..., i - 1 : i + 2, j - 1 : j + 2] = 1
    anomaly = build(size=64, samples=500).eval().maps(x).map[0, 0]
    found = np.unravel_index(int(anomaly.argmax()), anomaly.shape)
    assert abs(found[0] - i) <= 7 and abs(found[1] - j) <= 7


def test_too_little_foreground_scores_nothing():
    x = batch()
    x.foreground[0] = False
    x.foreground[0, 0, 5, 5:8] = True
    found = build().eval().maps(x).map
    assert not found[0].any() and found[1].any()


def test_a_machine_for_each_voxel():
    method = build(fitted="voxel", nu=0.2, samples=24, stride=4).double().eval()
    parts = [batch(12, seed=2), batch(12, seed=3)]
    for part in parts:
        part.image = part.image.double()
    parts[1].foreground[..., :8, :] = False
    parts[1].foreground[:9, :, 12:, :] = False
    method.fit(parts)
    assert method.fits and not build().fits
    test = batch(3, seed=9)
    test.image = test.image.double()
    codes = [codes_of(method, b)[..., 2::4, 2::4] for b in (*parts, test)]
    masks = [b.foreground[:, 0, 2::4, 2::4].numpy() for b in (*parts, test)]
    known, inside = np.concatenate(codes[:2]), np.concatenate(masks[:2])
    scores = np.full((3, 5, 5), np.nan)
    counts = set()
    for i in range(5):
        for j in range(5):
            points = known[inside[:, i, j], :, i, j]
            counts.add(len(points))
            if len(points) >= 5:
                scores[:, i, j] = decisions(points, codes[2][:, :, i, j], 0.2)
    assert counts == {0, 12, 15, 24}  # so the machines differ in size
    rows = torch.tensor(codes[2].transpose(2, 3, 0, 1).reshape(25, 3, -1))
    found = method.scores(rows).T.reshape(3, 5, 5).numpy()
    there = ~np.isnan(scores)
    np.testing.assert_allclose(found[there], scores[there], atol=1e-6)
    shown = method.maps(test).map.numpy()
    assert shown.shape == (3, 1, 20, 20) and np.isfinite(shown).all()
    inside = there & masks[2]
    expected = np.zeros((3, 5, 5))
    for k in range(3):
        expected[k][inside[k]] = z(scores[k][inside[k]])
    np.testing.assert_allclose(shown[:, 0].mean((1, 2)), expected.mean((1, 2)), rtol=1e-5)


def test_voxel_machines_survive_a_state_dict():
    method = build(fitted="voxel", stride=4, samples=8).eval()
    method.fit([batch(10)])
    again = build(fitted="voxel", stride=4, samples=8).eval()
    again.load_weights(method.state_dict())
    torch.testing.assert_close(again.maps(batch()).map, method.maps(batch()).map)
