"""The face for scikit-learn: its own checks, as far as they don't ask for tables of features."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from tests.toy import toy_scan

import normscan as ns
from normscan.errors import ArgumentError
from normscan.sklearn import AnomalyDetector

TINY = {"size": 32, "gate": False}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return np.stack([toy_scan(rng, 2, 1, False)[0][0] for _ in range(24)])


@pytest.fixture(scope="module")
def model(images):
    return AnomalyDetector("mean_image", contamination=0.2, options=TINY).fit(images)


def test_check_estimator_passes():
    with pytest.warns(Warning, match="requires input"):  # of two axes, which most checks give it
        estimator_checks.check_estimator(AnomalyDetector())


# Those of scikit-learn's checks that give no table of features.
@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable", "check_estimator_repr", "check_get_params_invariance",
        "check_no_attributes_set_in_init", "check_parameters_default_constructible",
        "check_set_params", "check_mixin_order", "check_estimator_tags_renamed",
        "check_valid_tag_types", "check_do_not_raise_errors_in_init_or_set_params",
    ],
)  # fmt: skip
def test_checks_that_need_no_table(check):
    getattr(estimator_checks, check)("AnomalyDetector", AnomalyDetector())


def test_scores_are_those_of_normscan_turned_round(model, images):
    finding = model.detector_.predict(images[3])
    scores, decisions = model.score_samples(images), model.decision_function(images)
    assert scores[3] == pytest.approx(-finding.score)
    np.testing.assert_allclose(decisions, scores - model.offset_)
    found = model.predict(images)
    assert set(found) <= {-1, 1} and found.dtype.kind == "i"
    np.testing.assert_array_equal(found == -1, [f.anomalous for f in model.findings(images)])
    odd = images.copy()
    odd[:, 10:30, 10:30] = 1.0
    assert model.decision_function(odd).mean() < decisions.mean()
    assert (model.fit_predict(images) == model.predict(images)).all()


def test_a_map_for_each_image(model, images):
    assert model.transform(images[:3]).shape == images[:3].shape
    with pytest.raises(ArgumentError, match="neither 2D nor 3D"):
        model.predict(images[0])


def test_it_is_cloned_pickled_searched_and_chained(model, images):
    fresh = clone(model)
    with pytest.raises(NotFittedError):
        fresh.predict(images)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.score_samples(images[:4]), model.score_samples(images[:4]))
    chain = make_pipeline(FunctionTransformer(lambda x: x[:, ::-1]), clone(model)).fit(images)
    assert chain.predict(images[:2]).shape == (2,)

    def healthy(estimator, X, y=None):
        return float(estimator.score_samples(X).mean())

    grid = {"options": [TINY, {**TINY, "size": 16}]}
    search = GridSearchCV(clone(model), grid, scoring=healthy, cv=2, error_score="raise")
    assert search.fit(images).best_params_["options"] in grid["options"]


def test_channels_and_volumes():
    rng = np.random.default_rng(1)
    colour = rng.random((12, 20, 24, 3), np.float32)
    model = AnomalyDetector("mean_image", channel_axis=-1, options=TINY).fit(colour)
    assert model.detector_.arguments["channels"] == 3
    assert model.transform(colour[:1]).shape == (1, 20, 24)
    volumes = rng.random((12, 16, 16, 16), np.float32)
    model = AnomalyDetector("mean_image", options={**TINY, "size": 16, "dims": 3}).fit(volumes)
    assert model.transform(volumes[:1]).shape == (1, 16, 16, 16)


def test_methods_are_listed_by_pattern_and_kind():
    every = ns.list_methods()
    assert list(ns.list_methods("dae*")) == sorted(id for id in every if id.startswith("dae"))
    assert set(ns.list_methods("*DDPM")) == {id for id in every if id.endswith("ddpm")}
    both = ns.list_methods(family="features", dims=2, regime="healthy")
    assert {"padim", "patchcore"} <= set(both) <= set(every)
    assert all(c.family == "features" and 2 in c.dims for c in both.values())
    assert ns.list_methods("nothing") == {}
    with pytest.raises(ArgumentError, match=r"no family 'feature'\. Did you mean"):
        ns.list_methods(family="feature")
