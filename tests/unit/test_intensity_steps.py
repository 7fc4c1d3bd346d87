"""Scalings, histogram matching and white stripe against numpy and closed forms; N4 and checks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.chain import run_steps
from normscan.preprocess.checks import measure
from normscan.preprocess.intensity import (
    PERCENTILES,
    histogram_match,
    learn_landmarks,
    stripe,
)
from normscan.preprocess.steps import STEPS, Working
from normscan.scan import Scan


def brain(rng, shape=(20, 21, 22), channels=2, spacing=2.0):
    """A ball of random values in a cold surrounding, with its mask."""
    index = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    mask = (index**2).sum(0) < 64
    data = rng.gamma(4.0, 25.0, (channels, *shape)).astype(np.float32)
    data[:, ~mask] *= 0.01
    names = tuple("ab"[:channels])
    return Working.of(Scan.from_array(data, spacing=spacing, channels=names), mask)


def test_scalings_equal_numpy_in_the_mask(rng):
    working = brain(rng)
    data, mask = working.scan.data.astype(float), working.foreground
    for channel in range(2):
        values = data[channel][mask]
        z = run_steps(["zscore"], working).scan.data[channel]
        np.testing.assert_allclose(z[mask], stats.zscore(values), atol=1e-4)
        cut = run_steps([{"percentile": {"low": 2, "high": 95}}], working).scan.data[channel]
        low, high = np.percentile(values, [2, 95])
        np.testing.assert_allclose(
            cut[mask], np.clip((values - low) / (high - low), 0, 1), atol=1e-5
        )
        full = run_steps(["minmax"], working).scan.data[channel][mask]
        assert (full.min(), full.max()) == pytest.approx((0, 1), abs=1e-6)


def test_tissues_are_the_classes_of_a_mixture(rng):
    """Against the classes that the values were drawn from."""
    working = brain(rng, channels=1)
    mask = working.foreground
    drawn = rng.integers(1, 4, mask.shape)
    data = 100 * drawn + rng.normal(0, 8, mask.shape)
    working = working.with_image(np.where(mask, data, -50)[None].astype(np.float32))
    found = run_steps([{"tissues": {"smooth": 0}}], working).scan.data[0]
    assert not found[~mask].any()
    assert (found[mask] == drawn[mask]).mean() > 0.99
    smooth = run_steps(["tissues"], working).scan.data[0]
    assert set(np.unique(smooth[mask])) == {1, 2, 3}


@pytest.mark.parametrize("options", [{"classes": 1}, {"classes": 6}, {"smooth": -1}])
def test_tissues_refuses(rng, options):
    with pytest.raises(ArgumentError, match="tissues: classes="):
        run_steps([{"tissues": options}], brain(rng))


def test_tissues_needs_values_enough(rng):
    working = brain(rng, channels=1)
    flat = 1.0 * (working.scan.data > np.median(working.scan.data[0][working.foreground]))
    with pytest.raises(ScanError, match="fewer values than 3 classes"):
        run_steps([{"tissues": {"smooth": 0}}], working.with_image(flat))


def test_outside_takes_its_value_and_unclipped_percentile_goes_on(rng):
    working = brain(rng)
    scaled = run_steps([{"zscore": {"outside": -3.5}}], working).scan.data
    assert (scaled[:, ~working.foreground] == -3.5).all()
    assert (scaled[:, working.foreground] != -3.5).all()
    free = run_steps([{"percentile": {"clip": False}}], working).scan.data
    assert free.max() > 1 and free.min() < 0


def nyul(values, points, targets):
    """Nyul's mapping written with np.interp and two rays."""
    out = np.interp(values, points, targets)
    first = (targets[1] - targets[0]) / (points[1] - points[0])
    last = (targets[-1] - targets[-2]) / (points[-1] - points[-2])
    out = np.where(values < points[0], targets[0] + (values - points[0]) * first, out)
    return np.where(values > points[-1], targets[-1] + (values - points[-1]) * last, out)


def test_histogram_match_equals_nyul_by_numpy(rng):
    train = [brain(rng) for _ in range(3)]
    learnt = learn_landmarks(train)
    expected = np.zeros((2, len(PERCENTILES)))
    for working in train:
        for c in range(2):
            p = np.percentile(working.scan.data[c][working.foreground].astype(float), PERCENTILES)
            expected[c] += (p - p[0]) / (p[-1] - p[0]) * 100 / 3
    np.testing.assert_allclose(learnt["landmarks"], expected, rtol=1e-6)
    assert type(learnt["landmarks"][0][0]) is float  # plain values, for JSON
    new = brain(rng)
    got = run_steps([{"histogram_match": learnt}], new).scan.data
    for c in range(2):
        values = new.scan.data[c].astype(float)
        points = np.percentile(values[new.foreground], PERCENTILES)
        np.testing.assert_allclose(got[c], nyul(values, points, expected[c]), atol=1e-3)
    assert STEPS["histogram_match"].learn is learn_landmarks


def test_histogram_match_undoes_a_change_of_gain_and_gamma(rng):
    one = brain(rng, channels=1)
    other = one.with_image(3 * one.scan.data**1.3 + 10)
    learnt = learn_landmarks([one])
    a, b = (histogram_match(w, **learnt).scan.data[0][one.foreground] for w in (one, other))
    inner = (a > 0) & (a < 100)
    assert np.abs(a - b)[inner].max() < 3.0


def test_white_stripe_finds_white_matter_in_a_mixture(rng):
    # CSF, GM and WM of a T1, 10, 50 and 40 percent.
    values = np.concatenate(
        [rng.normal(30, 8, 10_000), rng.normal(65, 4.5, 50_000), rng.normal(100, 4, 40_000)]
    )
    mean, deviation = stripe(values, last=True)
    assert mean == pytest.approx(100, abs=0.7)
    # 10 percent of all voxels are a quarter of the white matter around its mean: a truncated
    # normal between its quantiles 0.375 and 0.625.
    low, high = stats.norm.ppf([0.375, 0.625])
    assert deviation == pytest.approx(4 * stats.truncnorm(low, high).std(), rel=0.1)
    grey, _ = stripe(values, last=False)
    assert grey == pytest.approx(65, abs=1)


def test_white_stripe_ignores_a_rare_bright_lesion(rng):
    values = np.concatenate(
        [rng.normal(65, 6, 50_000), rng.normal(100, 4, 40_000), rng.normal(150, 4, 3_000)]
    )
    assert stripe(values, last=True)[0] == pytest.approx(100, abs=0.7)


def test_white_stripe_step_centres_white_matter(rng):
    working = brain(rng, channels=1)
    mask = working.foreground
    data = np.zeros_like(working.scan.data)
    data[0, mask] = np.where(
        rng.random(mask.sum()) < 0.5, rng.normal(60, 5, mask.sum()), rng.normal(100, 4, mask.sum())
    )
    scaled = run_steps([{"white_stripe": {"outside": 0}}], working.with_image(data)).scan.data
    white = scaled[0, mask & (data[0] > 85)]
    assert abs(np.median(white)) < 1.5
    assert (scaled[0, ~mask] == 0).all()


def biased(rng, strength=0.5, shape=(40, 40, 32)):
    """Three nested tissues, with noise, times a smooth field; and the field and mask."""
    x, y, z = (np.linspace(-1, 1, n).reshape([-1 if a == k else 1 for a in range(3)])
               for k, n in enumerate(shape))  # fmt: skip
    r = np.sqrt(x**2 + y**2 + z**2)
    ripple = 0.12 * np.sin(9 * x) * np.sin(8 * y) * np.sin(7 * z)
    truth = np.select([r + ripple < 0.35, r + ripple < 0.65, r < 0.9], [60.0, 100.0, 70.0])
    field = np.exp(strength * (0.6 * x + 0.5 * y**2 - 0.4 * z))
    mask = r < 0.9
    image = (truth + rng.normal(0, 1.5, shape) * mask) * field
    scan = Scan.from_array(np.maximum(image, 0), spacing=4.0)
    return Working.of(scan, mask), truth, field, mask


def test_n4_removes_a_known_field_and_keeps_the_scale(rng):
    working, truth, field, mask = biased(rng)
    done = run_steps([{"n4": {"shrink": 2, "iterations": 30}}], working)
    before, after = (w.scan.data[0][mask] / truth[mask] for w in (working, done))
    cv_before, cv_after = before.std() / before.mean(), after.std() / after.mean()
    assert cv_after < 0.4 * cv_before
    assert done.scan.data[0][mask].mean() == pytest.approx(
        working.scan.data[0][mask].mean(), rel=1e-4
    )
    known = field[mask].std() / field[mask].mean()
    assert done.facts["n4_field_cv"] == pytest.approx(known, rel=0.3)
    again = run_steps([{"n4": {"shrink": 2, "iterations": 30}}], working)
    np.testing.assert_array_equal(done.scan.data, again.scan.data)


def test_n4_treats_each_channel_alone_and_takes_images(rng):
    working, _, _, mask = biased(rng)
    scan = working.scan
    flat = biased(rng, 0.0)[0].scan.data[0]
    both = Scan.from_array(np.stack([scan.data[0], flat]), spacing=4.0, channels=("biased", "flat"))
    done = run_steps([{"n4": {"iterations": 10}}], Working.of(both, mask)).scan.data
    changes = [np.abs(done[k] - both.data[k])[mask].mean() for k in (0, 1)]
    assert changes[1] < 2.5 < 5 < changes[0]
    image = Scan.from_array(scan.data[0, :, :, 16], spacing=4.0)
    assert run_steps([{"n4": {"iterations": 5}}], Working.of(image)).scan.shape == (40, 40)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6])
def test_measured_bias_follows_the_known_one(rng, strength):
    working, _, field, mask = biased(rng, strength)
    known = field[mask].std() / field[mask].mean()
    found = measure(working.scan.data[0], mask, working.scan.spacing)["bias"]
    assert found == pytest.approx(known, abs=0.04 + 0.3 * known)
    assert found > 0.6 * known


def test_measured_noise_is_that_which_was_added(rng):
    mask = np.ones((30, 30, 30), bool)
    image = np.repeat(np.array([100.0, 200.0, 300.0]), 10)[:, None, None] * np.ones((30, 30, 30))
    noisy = image + rng.normal(0, 5, image.shape)
    found = measure(noisy, mask, (1.0, 1.0, 1.0))
    assert found["signal_to_noise"] == pytest.approx(200 / 5, rel=0.1)
    assert found["contrast"] == pytest.approx(100 / 5, rel=0.15)


def test_check_notes_what_is_doubtful(rng):
    working, *_ = biased(rng, 1.2)
    facts = run_steps([{"check_brain": {"brain_ml": [1500, 3000]}}], working)
    assert any("use n4" in n for n in facts.notes)
    assert any("ml" in n for n in facts.notes)
    assert facts.facts["brain_ml"] == pytest.approx(working.foreground.sum() * 0.064)
    noise = working.with_image(rng.normal(50, 20, working.scan.data.shape).astype(np.float32))
    assert any("signal to noise" in n for n in run_steps(["check_brain"], noise).notes)


@pytest.mark.parametrize(
    ("steps", "error", "says"),
    [
        ([{"percentile": {"low": 99, "high": 1}}], ArgumentError, "low first"),
        (["histogram_match"], ArgumentError, "no landmarks"),
        ([{"histogram_match": {"landmarks": [[0, 1]]}}], ArgumentError, "shape"),
        ([{"histogram_match": {"landmarks": [], "percentiles": [5, 5]}}], ArgumentError, "rising"),
        ([{"white_stripe": {"contrast": "pd"}}], ArgumentError, "t1, t2 or flair"),
        ([{"white_stripe": {"width": 0}}], ArgumentError, "width"),
        ([{"n4": {"shrink": 0}}], ArgumentError, "positive"),
        ([{"n4": {"mask": "brain"}}], ArgumentError, "otsu"),
        (["zscore", "n4"], ScanError, "before steps that scale"),
        ([{"check_brain": {"channel": 5}}], ArgumentError, "no channel 5"),
    ],
)
def test_wrong_arguments_are_refused(rng, steps, error, says):
    with pytest.raises(error, match=says):
        run_steps(steps, brain(rng))


@pytest.mark.parametrize("name", ["zscore", "minmax", "percentile", "white_stripe"])
def test_no_contrast_names_the_file(rng, name, tmp_path):
    data = np.full((1, 8, 8, 8), 7.0)
    scan = Scan.from_array(data, channels=("a",), source=tmp_path / "flat.nii.gz")
    with pytest.raises(ScanError, match=r"flat\.nii\.gz"):
        run_steps([name], Working.of(scan, np.ones((8, 8, 8), bool)))
