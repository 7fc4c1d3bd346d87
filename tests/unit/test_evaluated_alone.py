"""A table of test scans alone: there is nothing that baselines could learn from."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.toy import toy_scan

from normscan import Cohort, create
from normscan.evaluation import evaluate


@pytest.mark.parametrize("calibration", ["split", "cross"])
def test_it_is_evaluated_without_baselines(calibration, toy, tmp_path, capsys):
    rng, rows = np.random.default_rng(2), []
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", toy_scan(rng, 2, 1, i > 3)[0][0])
        rows.append({"path": f"{i}.npy", "label": int(i > 3), "split": "test"})
    cohort = Cohort.from_table(pd.DataFrame(rows), tmp_path)
    detector = create("padim", preset="tiny", gate=False, calibration=calibration, folds=2)
    detector.fit(Cohort.read(toy(2)))
    results = evaluate(detector, cohort, tmp_path / "evaluation", progress=True)
    assert results["baselines"] == {} and results["metrics"]["image_auroc"]["n"]
    assert "no baselines" in capsys.readouterr().err
