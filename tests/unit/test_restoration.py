"""Restoration under a prior: bounds of distributions, slopes, what is moved and how far."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.golden.fill import fill, images
from tests.toy import write_toy_cohort
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from normscan import progress
from normscan.cohort import Cohort
from normscan.detector import Detector
from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.networks.normative import NormativeGMVAE, NormativeVAE
from normscan.objectives.descent import Descent, total_variation
from normscan.registry import card
from normscan.rng import Rng
from normscan.scan import Scan

PRIORS = ("vae_restoration", "gmvae_restoration")


class Undrawn:
    """Takes the mean of every code."""

    def normal(self, shape):
        return torch.zeros(tuple(shape))


def batch(n: int = 2, size: int = 38, rng=None) -> Batch:
    image = images(n, 1, size, size, rule="grain")
    mask = torch.ones(n, 1, size, size, dtype=torch.bool)
    mask[..., :4] = False
    return Batch(image, mask, rng or Rng(list(range(n))), torch.zeros(n))


def create(name: str, **changes):
    small = {"size": 38, "width": 6, "latent": 2, "tv_weight": 0.3}
    method = card(name).create(**card(name).arguments("tiny", **{**small, **changes})).double()
    fill(method, "grain")
    return method.eval()


def test_loss_is_the_negative_bound_of_distributions():
    method, b = create("vae_restoration"), batch()
    network, again = method.network, batch()
    with torch.no_grad():
        features = network.encoder(b.image)
        q = Normal(network.mean(features), (network.log_variance(features) / 2).exp())
        z = q.loc + q.scale * again.rng.normal(q.loc.shape)
        mean, precision = network.decode(z)
    surprise = -Normal(mean, (-precision / 2).exp()).log_prob(b.image).sum((1, 2, 3)).mean()
    terms = method.loss(b, "", "")
    torch.testing.assert_close(terms["error"], surprise)
    torch.testing.assert_close(
        terms["kl"], kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)).mean()
    )


def test_mixture_divergences_are_those_of_distributions():
    method, b = create("gmvae_restoration", class_floor=0.05), batch()
    network, again = method.network, batch()
    with torch.no_grad():
        features = network.encoder(b.image)
        w = Normal(network.second_mean(features), (network.second_log_variance(features) / 2).exp())
        drawn = w.loc + w.scale * again.rng.normal(w.loc.shape)
        z = Normal(network.mean(features), (network.log_variance(features) / 2).exp())
        code = z.loc + z.scale * again.rng.normal(z.loc.shape)
        expected = network.prior(drawn)
        # (B, latent, K, h, w) to (B, h, w, K, latent)
        centre, sharpness = (
            head(expected).unflatten(1, (2, 6)).permute(0, 3, 4, 2, 1)
            for head in (network.centre, network.sharpness)
        )
    centres = Normal(centre, (-sharpness / 2).exp())
    classes = Categorical(logits=torch.zeros(centre.shape[:-1], dtype=torch.float64))
    mixture = MixtureSameFamily(classes, Independent(centres, 1))
    at = code.permute(0, 2, 3, 1)
    joint = centres.log_prob(at[..., None, :]).sum(-1) + classes.logits
    belief = (joint - mixture.log_prob(at)[..., None]).exp()
    posterior = Normal(*(t.permute(0, 2, 3, 1)[..., None, :] for t in (z.loc, z.scale)))
    each = kl_divergence(posterior, centres).sum(-1)
    uneven = kl_divergence(Categorical(probs=belief), classes)
    terms = method.loss(b, "", "")
    by_image = {
        "conditional_kl": (belief * each).sum((1, 2, 3)),
        "second_kl": kl_divergence(w, Normal(0.0, 1.0)).sum((1, 2, 3)),
        "class_kl": uneven.clamp_min(0.05).sum((1, 2)),
    }
    for name, values in by_image.items():
        torch.testing.assert_close(terms[name], values.mean(), rtol=1e-6, atol=1e-6)


def test_the_release_lets_wide_centres_win():
    z, centre = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1, 1)
    sharpness = torch.tensor([2.0, -2.0]).reshape(1, 1, 2, 1, 1)  # a narrow and a wide centre
    shared = {"classes": 2, "floor": 0.0}
    right = NormativeGMVAE(2, 1, 38, 4, 1, 0.1, belief="density", **shared)
    slip = NormativeGMVAE(2, 1, 38, 4, 1, 0.1, belief="release", **shared)
    narrow = Normal(0.0, math.exp(-1)).log_prob(torch.tensor(0.0)).exp()
    wide = Normal(0.0, math.exp(1)).log_prob(torch.tensor(0.0)).exp()
    found = right.belief(z, centre, sharpness)[0, :, 0, 0]
    torch.testing.assert_close(found, torch.stack([narrow, wide]) / (narrow + wide))
    assert slip.belief(z, centre, sharpness)[0, 1, 0, 0] > 0.9


def test_total_variation_by_numpy():
    x = images(2, 3, 5, 6, 4, rule="grain")
    expected = [sum(np.abs(np.diff(i, axis=a)).sum() for a in (1, 2, 3)) for i in x.numpy()]
    torch.testing.assert_close(total_variation(x), torch.tensor(expected))


@pytest.mark.parametrize("name", PRIORS)
def test_energy_and_its_slope(name):
    method, b = create(name), batch(rng=Undrawn())
    energy = method.prior(b.image, b)
    with torch.no_grad():
        _, parts = method.network.code(b.image, b.rng.normal)
        error = (b.image - method.network(b.image)).square().sum((1, 2, 3))
    torch.testing.assert_close(energy(b.image), error + sum(parts.values()))
    x = b.image.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    for place in ((0, 0, 7, 11), (1, 0, 30, 20)):
        step = torch.zeros_like(b.image)
        step[place] = 1e-5
        rise = (energy(b.image + step) - energy(b.image - step)).detach()
        assert float(rise[1 - place[0]]) == 0, "another image has a say"
        torch.testing.assert_close(slope[place], rise[place[0]] / 2e-5, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", PRIORS)
def test_restoration_lowers_its_objective_and_keeps_to_the_foreground(name):
    method, b = create(name, restoration_steps=40, step_sizes=(0.05, 0.05)), batch(rng=Undrawn())
    restored = method.maps(b).reconstruction
    prior = method.prior(b.image, b)

    def objective(x):
        return (prior(x) + 0.3 * total_variation(x - b.image)).detach()

    assert (objective(restored) < 0.9 * objective(b.image)).all()
    still = ~b.foreground
    assert torch.equal(restored[still], b.image[still])
    torch.testing.assert_close(method.maps(b).map, (restored - b.image).abs())


def test_steps_are_cut_and_become_smaller():
    descent = Descent(5, (0.5, 0.1), first_steps=2, limit=2.0)
    x = torch.zeros(1, 1, 2, 2)
    where = torch.tensor([[True, False], [True, True]])[None, None]
    moved = descent(lambda seen: 7 * seen.flatten(1).sum(1), x, where)
    torch.testing.assert_close(moved, torch.where(where, -2.0 * (2 * 0.5 + 3 * 0.1), 0.0))


def test_the_weight_is_the_one_that_moves_healthy_images_least():
    method = create("vae_restoration", tv_weight=None, tv_weights=(0.0, 0.05, 3.0))
    method.fit(iter([batch(3, rng=Rng(0)), batch(2, rng=Rng(1))]))
    changes = []
    for weight in (0.0, 0.05, 3.0):
        parts = [batch(n, rng=Undrawn()) for n in (3, 2)]
        change = [(method.moved(part, weight) - part.image).abs().sum() for part in parts]
        changes.append(float(sum(change)))
    assert float(method.tv_weight) == pytest.approx((0.0, 0.05, 3.0)[int(np.argmin(changes))])
    given = create("vae_restoration", tv_weight=0.7)
    given.fit(iter([batch()]))
    assert float(given.tv_weight) == pytest.approx(0.7)


def test_a_volume_of_100_slices_goes_in_seven_batches(monkeypatch, tmp_path):
    """Slices are restored together, whatever the number of steps."""
    cohort = Cohort.read(write_toy_cohort(tmp_path, 3, 1))
    few = cohort.select([row.split in ("train", "val") for row in cohort])
    detector = Detector(
        "vae_restoration", preset="tiny", gate=False, calibration="split", dims=2, steps=1,
        restoration_steps=3, tv_weight=0.2,
    ).fit(few)  # fmt: skip
    seen, descend = [], Descent.__call__

    def counted(self, energy, x, where):
        seen.append(len(x))
        return descend(self, energy, x, where)

    monkeypatch.setattr(Descent, "__call__", counted)
    volume = np.random.default_rng(0).uniform(0.2, 1, (20, 20, 100)).astype(np.float32)
    detector.predict(Scan.from_array(volume))
    assert seen == [16] * 6 + [4]


def test_steps_are_shown_beside_the_progress_of_scans(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    for _ in progress.Progress().track(["a scan"], "predict"):
        assert list(progress.steps_of("restoring", 3)) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert "predict: 0/1  restoring 2/3" in lines
    list(progress.steps_of("restoring", 3))
    list(progress.Progress(False).track(progress.steps_of("restoring", 3), "predict"))
    assert not capsys.readouterr().err


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="Use size=66"):
        NormativeVAE(2, 1, 64, 8, 1, 0.0)
    with pytest.raises(ArgumentError, match="tv_weights"):
        create("vae_restoration", tv_weight=None, tv_weights=())
