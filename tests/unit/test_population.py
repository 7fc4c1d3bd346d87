"""Phenotypes against loops, standardisation against numpy, columns that are missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.population import Standardise, design
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.phenotypes import QUANTILES, count, phenotypes


def test_phenotypes_by_hand(rng):
    x = rng.normal(size=(1, 2, 7, 9))
    mask = rng.random((1, 1, 7, 9)) > 0.4
    mask[0, 0, :2, :3] = False  # the first cell has no foreground
    got = phenotypes(torch.tensor(x), torch.tensor(mask), 3)[0].numpy()
    assert got.shape == (count(2, 2, 3),)
    m = mask[0, 0]
    expected = [m.mean()]
    for c in x[0]:
        expected += [c[m].mean(), c[m].std()]
    for c in x[0]:
        expected += [np.sort(c[m])[round(q * (m.sum() - 1))] for q in QUANTILES]
    for c in x[0]:
        steps = [
            abs(c[i, j] - c[i + a, j + b])
            for i in range(7)
            for j in range(9)
            for a, b in ((1, 0), (0, 1))
            if i + a < 7 and j + b < 9 and m[i, j] and m[i + a, j + b]
        ]
        expected.append(np.mean(steps))
    for rows in ((0, 2), (2, 5), (5, 7)):
        for columns in ((0, 3), (3, 6), (6, 9)):
            box = (slice(*rows), slice(*columns))
            expected.append(m[box].mean())
            for c in x[0]:
                values = c[box][m[box]] if m[box].any() else c[m]
                expected += [values.mean(), values.std()]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_phenotypes_of_an_empty_foreground_and_in_space():
    x = torch.rand(2, 1, 5, 6, 7)
    empty = torch.zeros(2, 1, 5, 6, 7, dtype=torch.bool)
    got = phenotypes(x, empty, 2)
    assert got.shape == (2, count(1, 3, 2)) and torch.isfinite(got).all()
    torch.testing.assert_close(got, phenotypes(x, ~empty, 2))


def test_standardisation_is_least_squares_then_median_and_deviation(rng):
    age, size = rng.uniform(40, 80, 200), rng.normal(1.5e6, 1e5, 200)
    known = design(torch.tensor(np.stack([age, size], 1)), True)
    values = np.stack([3 * age + 1e-5 * size + rng.normal(size=200), rng.standard_t(3, 200)], 1)
    values[0, 1] = 100  # an outlier hardly matters
    layer = Standardise(2, 4).train()
    got = layer(torch.tensor(values), known).numpy()
    x = np.stack([np.ones(200), age, size, age * size], 1)
    x = x / np.abs(x).max(0)
    left = values - x @ np.linalg.lstsq(x, values, rcond=None)[0]
    middle = np.median(left, 0)
    mad = stats.median_abs_deviation(left, scale="normal")
    # The lower of the middle two or their mean: quantiles of torch and numpy agree here.
    np.testing.assert_allclose(got, (left - middle) / mad, rtol=2e-3, atol=2e-3)


def test_running_standardisation_tends_to_that_of_the_table(rng):
    values = torch.tensor(rng.normal(5, 3, size=(400, 2)))
    known = torch.ones(400, 1, dtype=torch.double)
    layer = Standardise(2, 1).train()
    for part in values.split(50):
        layer(part, known[:50])
    layer.eval()
    before = layer.seen.clone()
    got = layer(values, known)
    assert layer.seen == before
    assert got.median(0).values.abs().max() < 0.15 and (got.std(0) - 1).abs().max() < 0.15


def test_a_constant_phenotype_stays_finite():
    layer = Standardise(2, 1).train()
    values = torch.zeros(30, 2, dtype=torch.double)
    values[:5, 1] = 1  # more than half agree: the standard deviation scales
    got = layer(values, torch.ones(30, 1, dtype=torch.double))
    assert torch.isfinite(got).all() and got.abs().max() < 5


def cohort(rng, n=120, outlier=False):
    age = rng.uniform(20, 80, n)
    volume = 100 - 0.5 * age + rng.normal(0, 1, n)
    if outlier:
        volume = volume + 12  # usual for the young, not for this age
    columns = [
        {"age": float(a), "volume": float(v), "other": float(rng.normal()), "sex": "F"}
        for a, v in zip(age, volume, strict=True)
    ]
    image = torch.zeros(n, 1, 4, 4)
    return Batch(image, image > -1, Rng(0), torch.zeros(n), columns=columns)


def build(**changes):
    entry = card("ukb_outlier_ae")
    return entry.create(**entry.arguments("tiny", **changes))


def test_columns_of_the_cohort_with_covariates(rng):
    method = build(features=("volume", "other"), covariates=("age",), scorer="mahalanobis")
    assert method.phases() == []
    method.fit(iter([cohort(rng)]))
    method.eval()
    healthy, ill = method.maps(cohort(rng)).score, method.maps(cohort(rng, 20, True)).score
    assert ill.min() > healthy.quantile(0.99)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features": ("volum",)},
            "features names the column 'volum'.*did you mean 'volume'|volume",
        ),
        ({"covariates": ("weight",)}, "covariates names the column 'weight'"),
        ({"features": ("sex",)}, "column 'sex' must hold a number"),
    ],
)
def test_columns_that_are_missing_or_no_numbers(rng, changes, message):
    with pytest.raises(ArgumentError, match=message):
        build(**changes).eval().maps(cohort(rng, 3))


def test_a_scan_without_a_cohort_says_so():
    method = build(features=("volume",)).eval()
    image = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ArgumentError, match="without a cohort's columns"):
        method.maps(Batch(image, image > -1, Rng([0]), torch.zeros(1)))


def test_the_largest_error_screens_or_their_mean(rng):
    batch = cohort(rng, 9)
    scores = {}
    for screen in ("max", "mean"):
        torch.manual_seed(1)
        method = build(features=("volume", "other"), screen=screen).eval()
        scores[screen] = method.maps(batch).score
    numbers = method.standardise(*method.numbers.of(batch))
    error = (method.network(numbers) - numbers).square().detach()
    torch.testing.assert_close(scores["mean"], error.mean(1))
    torch.testing.assert_close(scores["max"], error.max(1).values)
