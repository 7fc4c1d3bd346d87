"""What auto finds out about a cohort, what it plans from it, and every reason why it can't."""

from __future__ import annotations

import numpy as np
import pytest

from normscan.auto.fingerprint import FEWEST, explained, fingerprint
from normscan.auto.plan import Budget, Cost, named, plan, tried, within
from normscan.cohort.memory import as_cohort
from normscan.errors import ArgumentError, CohortError
from normscan.preprocess import Preprocess
from normscan.progress import Progress
from normscan.registry import card
from normscan.scan import Scan


def scans(count, shape=(24, 20), seed=0):
    """Discs of their own sizes with noise."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    far = np.sqrt(sum(a**2 for a in axes))
    return [
        ((far < rng.uniform(0.6, 0.9)) * rng.uniform(0.5, 1, shape)).astype(np.float32)
        for _ in range(count)
    ]


def look(arrays, **preprocess):
    with as_cohort(arrays, 0, (1.0, 0.0, 0.0)) as cohort:
        return fingerprint(list(cohort), Preprocess(**preprocess))


def planned(arrays, **arguments):
    values = card("auto").arguments("laptop", size=32, planted=20, **arguments)
    with as_cohort(arrays, 0, (1.0, 0.0, 0.0)) as cohort:
        return plan(values, Preprocess(), list(cohort), 1, 0, Progress(False))


# ------------------------------------------------------------------ fingerprint


def test_fingerprint_says_what_scans_are_like():
    found = look([*scans(11), scans(1)[0]])
    assert (found.subjects, found.scans, found.read) == (12, 12, 12)
    assert (found.dims, found.size, found.depth) == (2, (24, 20), 1)
    assert found.copies == 1  # the last is the first again
    assert 0.3 < found.foreground < 1
    low, middle, high = found.intensities
    assert low <= middle <= high <= 1


def test_fingerprint_of_volumes():
    found = look(scans(8, (16, 14, 6)))
    assert (found.dims, found.size, found.depth) == (3, (16, 14, 6), 6)


def test_explained_is_that_of_the_mean_of_the_others(rng):
    """Pictures a + e with independent e: the mean of n - 1 others leaves var(e) (1 + 1 / (n - 1))."""
    n, points = 20, 4000
    common = rng.normal(size=points)
    pictures = list(common + 0.5 * rng.normal(size=(n, points)))
    expected = 1 - 0.25 * (1 + 1 / (n - 1)) / 1.25
    assert explained(pictures) == pytest.approx(expected, abs=0.02)
    apart = explained(list(rng.normal(size=(n, points))))
    assert apart == pytest.approx(-1 / (n - 1), abs=0.02)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        pytest.param(scans(FEWEST - 1), "7 healthy subjects.*needs 8", id="few"),
        pytest.param([scans(1)[0]] * 9, "nearly identical", id="same"),
        pytest.param([*scans(8), *scans(1, (12, 12, 5))], "Split the cohort", id="dims"),
        pytest.param(
            [np.zeros((24, 20), np.float32)] * 9, "no healthy scan can be read", id="empty"
        ),
    ],
)
def test_what_cannot_be_learnt_from_is_said(arrays, message):
    with pytest.raises(CohortError, match=message):
        look(arrays)


def test_scans_of_other_channels_are_refused():
    more = [Scan.from_array(np.stack([a, a]), channels=("T1w", "FLAIR")) for a in scans(1)]
    with pytest.raises(CohortError, match="T1w, FLAIR: give all scans the same ones"):
        look([*map(Scan.from_array, scans(8)), *more])


# ------------------------------------------------------------------------- plan


def test_plan_says_who_is_tried_and_why_others_are_not():
    names, passed = named(
        {
            "candidates": ("padim", "vae", "hist_threshold_baseline", "auto", "unet_vit_mood"),
            "skip": ("vae",),
        },
        2,
    )
    assert names == ["padim", "unet_vit_mood"]
    assert passed["vae"] == "left out as asked (skip)"
    assert "zero-shot" in passed["hist_threshold_baseline"] and "auto" in passed


def test_a_misspelt_name_is_said():
    with pytest.raises(ArgumentError, match="no method 'padmi'"):
        named({"candidates": ("padim",), "skip": ("padmi",)}, 2)
    with pytest.raises(ArgumentError, match="no method 'padmi'"):
        named({"candidates": ("padmi",), "skip": ()}, 2)


def test_no_candidate_fits_says_what_would():
    with pytest.raises(ArgumentError, match=r"zero-shot.*normscan\[weights\].*--candidates"):
        planned(scans(9), candidates=("hist_threshold_baseline",))


def test_too_few_minutes_train_the_cheapest_and_say_so():
    found = planned(scans(9), candidates=("dae:tiny", "mean_image:tiny"), minutes=1e-9)
    assert found["arguments"]["candidates"] == ["mean_image:tiny"]
    assert "too few for any candidate: the cheapest, mean_image:tiny" in found["reasons"]["time"]
    assert "more than what is left" in found["passed_over"]["dae:tiny"]


def test_a_plan_is_json_and_settles_what_was_left_open():
    import json

    found = planned(scans(9), candidates=("mean_image:tiny", "ae_dense:tiny"))
    assert json.loads(json.dumps(found)) is not None
    assert set(found["arguments"]) == {"candidates", "effort", "every", "dims"}
    assert found["arguments"]["every"] == 3  # few subjects
    assert found["arguments"]["dims"] == 2


def test_a_candidate_that_cannot_take_part_says_why():
    full, cost, told = tried("inter_slice:tiny", 2, 1, 32, 0, 10)
    assert (full, cost) == ("inter_slice:tiny", None) and "neighbouring slices" in told


@pytest.mark.parametrize("seed", range(5))
def test_what_is_taken_fits_the_time(seed):
    rng = np.random.default_rng(seed)
    costs = {
        f"m{i}": Cost(*rng.uniform(0, 0.2, 1), int(rng.integers(1, 500)), *rng.uniform(0, 0.05, 2))
        for i in range(8)
    }
    budget = Budget(float(rng.uniform(0.5, 20)), 3, 50, 100)
    kept, effort, passed = within(costs, budget)
    assert sorted([*kept, *passed]) == sorted(costs) and kept
    assert effort in (0.25, 0.5, 0.75, 1)
    spent = sum(budget.seconds(costs[name], effort) for name in kept)
    assert spent <= 60 * budget.minutes or len(kept) == 1
    cheapest = min(costs, key=lambda name: budget.seconds(costs[name]))
    assert cheapest in kept


def test_cost_of_a_candidate_is_summed_up():
    """Two fits of 10 images: closed form twice, 5 looks, 100 steps."""
    cost = Cost(step=0.1, steps=100, fit=0.01, look=0.2)
    assert Budget(1, 2, 10, 5).seconds(cost) == pytest.approx(2 * (2 * 0.1 + 1.0 + 10))
    assert Budget(1, 2, 10, 5).seconds(cost, 0.5) == pytest.approx(2 * (2 * 0.1 + 1.0 + 5))
