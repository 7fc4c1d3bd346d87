"""Labels without masks in training: drawn in equal parts, from nobody who is tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.support.regimes import registered

from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.errors import CohortError
from normscan.rng import Rng, derive_seed
from normscan.training.data import Draws, PreparedSet
from normscan.training.loop import Trainer

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 28}, "gate": False}


@pytest.fixture(scope="module", autouse=True)
def toys():
    with registered():
        yield


def numbers(n: int, context: int = 0) -> PreparedSet:
    """A set whose images are their own numbers."""
    images = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    return PreparedSet(images, images[:, 0] >= 0, np.zeros(n, np.float32), np.arange(n),
                       [{}] * n, [], subjects=list(range(n)))  # fmt: skip


# ---------------------------------------------------------------- balanced draws


@pytest.mark.parametrize(("batch_size", "healthy", "labelled"), [(8, 40, 6), (4, 3, 50), (6, 9, 9)])
def test_every_batch_has_as_many_of_each_part(batch_size, healthy, labelled):
    joined = PreparedSet.join([numbers(healthy), numbers(labelled)])
    draws = Draws(joined, batch_size, 5, balanced=True)
    order = [draws.indices(draw) for draw in range(60)]
    for indices in order:
        parts = joined.batch(indices, Rng(0)).part
        assert int((parts == 0).sum()) == int((parts == 1).sum()) == batch_size // 2
    # Each part goes round by itself: no sample comes again before all have come.
    drawn = np.concatenate(order)
    for mine in (drawn[drawn < healthy], drawn[drawn >= healthy]):
        counts = np.bincount(mine)
        assert np.ptp(counts[counts > 0]) <= 1 + batch_size // len(counts[counts > 0])
    again = Draws(joined, batch_size, 5, balanced=True)
    for draw in (41, 3, 59):
        np.testing.assert_array_equal(again.indices(draw), order[draw])
    assert any((Draws(joined, batch_size, 6, True).indices(i) != order[i]).any() for i in range(9))


def test_processes_that_share_a_draw_get_both_parts():
    joined = PreparedSet.join([numbers(40), numbers(40)])
    draws = Draws(joined, 8, 0, balanced=True)
    mine = np.concatenate([draws.indices(draw)[0::2] for draw in range(50)])
    assert 60 < (mine < 40).sum() < 140


def test_without_balance_the_order_is_the_one_of_before():
    """One permutation a pass, from (seed, order, pass)."""
    draws = Draws(numbers(7), 3, 11)
    drawn = np.concatenate([draws.indices(draw) for draw in range(7)])
    passes = [np.random.default_rng(derive_seed(11, "order", e)).permutation(7) for e in range(3)]
    np.testing.assert_array_equal(drawn, np.concatenate(passes))


# ---------------------------------------------------------------- end to end


def told(toy, **cells) -> Cohort:
    """The toy cohort with some cells changed: ``split=function of the row``."""
    frame = pd.read_csv(toy(2), dtype=str, keep_default_na=False)
    for column, change in cells.items():
        frame[column] = [change(row) for row in frame.to_dict("records")]
    return Cohort.from_table(frame, toy(2).parent)


def test_fit_save_load_predict(toy, tmp_path, monkeypatch):
    """Half of each batch is anomalous, and it learns to tell which; masks are never read."""
    seen = []
    inner = Trainer._step

    def step(self, *arguments):
        loss = self.method.loss
        self.method.loss = lambda batch, *names: (seen.append(batch), loss(batch, *names))[1]
        try:
            return inner(self, *arguments)
        finally:
            del self.method.loss

    monkeypatch.setattr(Trainer, "_step", step)
    cohort = told(toy, mask=lambda row: "nowhere.npy" if row["split"] == "extra" else "")
    detector = Detector("toy_classes", **OPTIONS).fit(cohort, tmp_path / "run")
    assert {int(b.label.sum()) for b in seen} == {6}
    assert all(torch.equal(b.label, b.part) for b in seen)
    assert detector.training["samples"] == {"train": 48, "val": 6, "labelled": 18}
    loaded = load(tmp_path / "run", "cpu")
    test = cohort.part("test")
    found = [(r.label, f.score, loaded.predict(r.load()).score)
             for r, f in detector.predict_cohort(test)]  # fmt: skip
    labels, scores, again = zip(*found, strict=True)
    assert scores == pytest.approx(again, rel=1e-5)  # batches of another size differ in last bits
    assert roc_auc_score(labels, scores) > 0.8


def test_no_label_of_val_or_test_is_seen(toy):
    """With the labels of test turned round the same bits are learnt, and val is healthy."""
    turned = told(
        toy, label=lambda r: str(1 - int(r["label"])) if r["split"] == "test" else r["label"]
    )
    states = [
        Detector("toy_classes", steps=3, **OPTIONS).fit(cohort).method.state_dict()
        for cohort in (Cohort.read(toy(2)), turned)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    # A label 1 in val is not learnt from there: the scan moves to extra, which is told.
    moved = told(toy, label=lambda r: "1" if r["scan"] == "val000" else r["label"])
    assert len(moved.part("val")) == 5 and "val000" in {r.scan for r in moved.part("extra")}
    assert all(row.label == 0 for row in moved.part("val"))


def test_a_cohort_without_labels_is_refused(toy):
    with pytest.raises(CohortError, match=r"learns from anomalous scans.*split 'extra'"):
        Detector("toy_classes", **OPTIONS).fit(told(toy, label=lambda r: "0" * (r["label"] == "0")))
