"""The fitted limits by an oracle whose limit is known, the files."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from tests.support.planted import head, site

from normscan.cohort import Cohort
from normscan.decide import ScanThreshold
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError, CohortError, OutputError, ScanError
from normscan.limits import detection_limits, write_limits
from normscan.limits.curves import Curve, cells, fit_curve, surfaces
from normscan.limits.result import FAINTEST, LARGEST
from normscan.limits.run import COLUMNS, _row, read_rows
from normscan.limits.sources import PhantomSource, as_scan, scan_source
from normscan.phantom import PhantomConfig, make_subject, simulate
from normscan.planting.sites import EDGE

# ---------------------------------------------------------------------- curves

SIZES, CONTRASTS = np.meshgrid([2.0, 4, 8, 16], [0.5, 1, 2])
SIZES, CONTRASTS = SIZES.ravel(), CONTRASTS.ravel()


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_the_fit_recovers_the_curve_that_made_the_counts(floor):
    true = Curve(-3.0, 2.0, 1.5, 0.4, floor)
    n = np.full(12, 4000.0)
    fitted = fit_curve(SIZES, CONTRASTS, n * true.probability(SIZES, CONTRASTS), n, floor)
    found = (fitted.intercept, fitted.by_size, fitted.by_contrast, fitted.both)
    assert found == pytest.approx((-3.0, 2.0, 1.5, 0.4), abs=5e-3)
    at = fitted.size_at(2.0, 0.9)
    assert fitted.probability(at, 2.0) == pytest.approx(0.9)
    y = math.log(2)
    exact = math.exp((logit((0.9 - floor) / (1 - floor)) + 3 - 1.5 * y) / (2 + 0.4 * y))
    assert at == pytest.approx(exact, rel=1e-3)
    assert fitted.probability(4.0, fitted.contrast_at(4.0, 0.5)) == pytest.approx(0.5)


def test_without_floor_it_is_logistic_regression(rng):
    hits = rng.binomial(30, Curve(-3.0, 2.0, 1.5).probability(SIZES, CONTRASTS)).astype(float)
    fitted = fit_curve(SIZES, CONTRASTS, hits, np.full(12, 30.0), 0.0)
    x, y = np.log(SIZES), np.log(CONTRASTS)
    design = np.column_stack([x, y, x * y])
    peer = LogisticRegression(C=1e6, tol=1e-9, max_iter=10_000)
    peer.fit(np.tile(design, (2, 1)), np.r_[np.ones(12), np.zeros(12)], np.r_[hits, 30 - hits])
    expected = peer.predict_proba(design)[:, 1]
    np.testing.assert_allclose(fitted.probability(SIZES, CONTRASTS), expected, atol=2e-3)


def test_slopes_are_never_negative_and_separation_stays_finite():
    n = np.full(12, 20.0)
    falling = fit_curve(SIZES, CONTRASTS, 20 / SIZES, n, 0.0)
    assert falling.by_size == pytest.approx(0, abs=1e-9) and falling.size_at(1.0, 0.9) == math.inf
    parted = fit_curve(SIZES, CONTRASTS, np.where(SIZES > 5, 20.0, 0.0), n, 0.0)
    assert 10 < parted.by_size < 200 and 4 < parted.size_at(1.0, 0.5) < 8
    nothing = fit_curve(SIZES, CONTRASTS, 0 * n, n, 0.0)
    assert nothing.size_at(2.0, 0.5) > 16
    assert Curve(0.0, 1.0, 1.0, floor=0.6).size_at(1.0, 0.5) == 0


def table(found, subjects=20, sizes=(4.0, 8.0), contrasts=(1.0,)):
    """Rows of planted lesions; ``found(subject, size, contrast)`` says which were found."""
    rows = []
    for i in range(subjects):
        row = dict.fromkeys(COLUMNS, 0.0)
        row |= {"site": i, "subject": f"p{i}", "scan": f"s{i}", "gate": "", "twin_hit": False}
        rows.append({**row, "flagged": False, "found": ""})
        for size in sizes:
            for contrast in contrasts:
                hit = bool(found(i, size, contrast))
                more = {"size": size, "contrast": contrast, "flagged": hit, "found": hit}
                rows.append(row | more)
    return pd.DataFrame(rows)


def wilson(hits, n):
    p, z = hits / n, stats.norm.ppf(0.975)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def test_the_fit_never_falls(rng):
    """Whatever the counts, along every side of the grid."""
    for _ in range(20):
        fitted = fit_curve(SIZES, CONTRASTS, rng.integers(0, 21, 12) * 1.0, np.full(12, 20.0), 0.05)
        grid = fitted.probability(SIZES, CONTRASTS).reshape(3, 4)
        assert (np.diff(grid, axis=0) > -1e-6).all() and (np.diff(grid, axis=1) > -1e-6).all()


def test_cells_have_wilson_intervals():
    counted = cells(table(lambda i, size, c: i < size), "scan").set_index("size")
    for size, hits in ((4.0, 4), (8.0, 8)):
        row = counted.loc[size]
        assert (row["planted"], row["found"], row["probability"]) == (20, hits, hits / 20)
        assert (row["low"], row["high"]) == pytest.approx(wilson(hits, 20))


def test_intervals_are_by_subject():
    """Ten lesions of one subject are one observation: the interval must be as wide as without."""
    alone = table(lambda i, size, c: i < 2 * size)
    many = pd.concat([alone.assign(site=alone["site"] + 100 * k) for k in range(10)])
    first, second = (surfaces(t, "scan", 100)[0].smallest(1.0, 0.5) for t in (alone, many))
    assert first.low < first.value < first.high
    # The ridge weighs a tenth with ten times the lesions.
    assert (second.low, second.high) == pytest.approx((first.low, first.high), rel=0.02)


def test_curves_of_scans_start_at_the_rate_of_the_twins():
    rows = table(lambda i, size, c: i < 6 or size > 5)
    rows.loc[(rows["size"] == 0) & (rows["site"] < 6), "flagged"] = True
    (scan,), (lesion,) = (surfaces(rows, level, 20) for level in ("scan", "lesion"))
    assert scan.curve.floor == pytest.approx(0.3) and lesion.curve.floor == 0
    # 6 of 20 at 4 mm are no more than the twins: nothing of them is owed to the lesion.
    assert scan.curve.probability(4.0, 1.0) == pytest.approx(0.3, abs=0.05)
    assert len({c.floor for c in scan.replicates}) > 1
    assert cells(rows, "scan")["twins"].tolist() == [0.3, 0.3]


def test_limits_outside_the_tested_sizes_are_said_so():
    never = surfaces(table(lambda i, size, c: False), "scan", 20)[0].smallest(1.0, 0.5)
    assert not never.reached and str(never) == "never"
    assert never.to_dict()["value"] is None
    always = surfaces(table(lambda i, size, c: True), "scan", 20)[0].smallest(1.0, 0.5)
    assert always.reached and always.value == 4.0 and str(always).startswith("≤ 4")
    dark = surfaces(table(lambda i, s, c: s > 5, contrasts=(-2.0, 1.0)), "lesion", 0)
    assert [s.sign for s in dark] == [1, -1] and math.isnan(dark[1].smallest(-2.0, 0.5).low)
    with pytest.raises(ArgumentError, match="two sizes"):
        surfaces(table(lambda i, size, c: True, sizes=(4.0,)), "scan")


# ---------------------------------------------------------------------- an oracle


class Oracle:
    """Scores the sum of what was added, so that its limit is known in closed form.

    With a threshold of its own for each scan, whose logarithm is logistic of scale S about ln(T),
    a lesion of contrast c and diameter d is found with probability logistic(ln(c A d^2 / T) / S).
    """

    T, S = 150.0, 0.4
    seed, fingerprint, pixel_fpr, pixel_threshold = 0, "oracle", 0.05, 0.5
    card, further = SimpleNamespace(id="oracle", paper=""), ()

    def __init__(self, scans, maps=True):
        self.base = {float(scan.data[0, 0, 0]): scan for scan in scans}
        self.maps, self.calls = maps, 0
        self.scan_threshold = ScanThreshold(np.linspace(0, 1, 39))
        places = (np.arange(len(scans)) + 0.5) / len(scans)
        self.limit = dict(zip(self.base, self.T * np.exp(self.S * logit(places)), strict=True))

    def doubts(self, rows, split):
        return ()

    def predict(self, scan, foreground=None, details=True, force=False):
        assert force
        self.calls += 1
        tag = float(scan.data[0, 0, 0])
        if tag not in self.base:
            raise ScanError("array: it can't be scored.")
        base = self.base[tag].data[0]
        inside = base > 3
        change = np.abs(scan.data[0] - base) / (stats.iqr(base[inside]) / 1.349)
        score = float(change.sum()) / self.limit[tag]
        p = self.scan_threshold.p_value(score)
        return Finding(
            scan, change if self.maps else None, score, p, score > 1, 1.0, self.pixel_threshold
        )


@pytest.fixture(scope="module")
def heads():
    """Scans that differ in their noise and in the value of a corner, which is their tag."""
    scans = []
    for i in range(24):
        scan, _ = head(seed=i)
        data = scan.data.copy()
        data[0, 0, 0] = 0.001 * i
        scans.append(scan.with_data(data))
    return scans


GRID = {"sizes": [4, 6, 9, 13, 18], "contrasts": [-2, 0.75, 1.5, 3], "replicates": 30}


@pytest.fixture(scope="module")
def known(heads):
    return detection_limits(Oracle(heads), heads, count=24, **GRID)


def test_the_oracle_is_found_at_its_limit(known):
    area = math.pi / 4 + math.pi * EDGE**2 / 20
    for contrast in (0.75, 1.5, 3, -2):
        exact = math.sqrt(Oracle.T / (abs(contrast) * area))
        limit = known.smallest(contrast, 0.5)
        assert limit.value == pytest.approx(exact, rel=0.06)
        assert limit.low <= limit.value <= limit.high
        exact *= math.exp(Oracle.S * logit(0.9) / 2)
        limit = known.smallest(contrast, 0.9)
        if exact > 18 * 1.1:
            assert not limit.reached and str(limit).startswith("never")
        else:
            assert limit.value == pytest.approx(exact, rel=0.1)
    faintest = known.faintest(9.0, 0.5)
    assert faintest.value == pytest.approx(Oracle.T / (81 * area), rel=0.1)
    fit = known.table[known.table["level"] == "scan"]
    exact = expit(np.log(fit["contrast"].abs() * area * fit["size"] ** 2 / Oracle.T) / Oracle.S)
    np.testing.assert_allclose(fit["fit"], exact, atol=0.07)


def test_rows_are_paired_and_complete(known):
    rows = known.rows
    assert len(rows) == 24 * (1 + 5 * 4) and known.levels == ["scan", "lesion"]
    lesions = rows[rows["size"] > 0]
    assert (lesions.groupby("site")[["x", "y", "z"]].nunique() == 1).all().all()
    assert lesions["scan"].nunique() == lesions["subject"].nunique() == 24
    assert (known.table["planted"] == 24).all()
    assert known.healthy()["flagged"] == 0 and known.healthy()["n"] == 24
    # The change is above half a deviation inside: every lesion of 0.75 and more is segmented.
    assert known.table.query("level == 'lesion'")["probability"].eq(1).all()
    with pytest.raises(ArgumentError, match=r"0\.1 was not tested: 0\.75 to 3"):
        known.smallest(0.1)
    with pytest.raises(ArgumentError, match="no level 'lesions'.*Did you mean 'lesion'"):
        known.smallest(1.0, 0.5, "lesions")
    with pytest.raises(ArgumentError, match="between 0 and 1"):
        known.smallest(1.0, 1.0)


def test_examples_are_the_faintest_found_and_the_largest_missed(heads):
    oracle = Oracle(heads, maps=False)
    limits = detection_limits(oracle, heads, count=24, **GRID)
    assert limits.levels == ["scan"] and not (limits.rows["found"] == True).any()  # noqa: E712
    lesions = limits.rows[limits.rows["size"] > 0]
    likely = limits.table[limits.table["probability"] >= 0.5]
    found = likely["contrast"].abs().min()
    missed = lesions[~lesions["flagged"]]["size"].max()
    assert limits.examples[FAINTEST][0].title.endswith(f"contrast +{found:g}")
    assert limits.examples[LARGEST][0].title.startswith(f"{missed:g} mm")
    assert limits.examples[LARGEST][0].mask.any() and not limits.examples[LARGEST][0].anomalous


def test_what_the_twin_shows_does_not_count():
    scan, mask = head()
    place = site(scan, mask)
    lesion = place.grow(12.0)(2.0)

    def finding(hot):
        return Finding(scan, hot.astype(np.float32), 1.0, pixel_threshold=0.5)

    nothing, everything = finding(np.zeros_like(mask)), finding(np.ones_like(mask))
    flat = np.flatnonzero(lesion.mask)
    part = np.zeros_like(mask)
    part.flat[flat[: len(flat) // 20]] = True

    def found(after, before):
        row = _row(0, place, after, lesion, before, 0.1)
        return row["found"], row["twin_hit"], row["overlap"]

    assert found(everything, nothing) == (True, False, 1)
    assert found(everything, everything) == (False, True, 0)
    assert found(nothing, nothing) == (False, False, 0)
    assert found(finding(part), nothing)[0] is False  # a twentieth of it, a tenth is asked for
    assert found(everything, finding(part))[:2] == (True, False)
    assert found(finding(~lesion.mask), nothing)[0] is False


# ---------------------------------------------------------------------- runs on disk

SMALL = {"sizes": [5, 12], "contrasts": [1, 3], "replicates": 5, "count": 4}


def test_a_stopped_run_goes_on(heads, tmp_path):
    straight = detection_limits(Oracle(heads), heads, **SMALL, out=tmp_path / "straight")
    oracle = Oracle(heads)
    detection_limits(oracle, heads, **{**SMALL, "count": 2}, out=tmp_path / "out")
    path = tmp_path / "out" / "limits.csv"
    text = path.read_text()
    path.write_text(text[:-40])  # the last line was not finished, so its site is not
    oracle.calls = 0
    resumed = detection_limits(oracle, heads, **SMALL, out=tmp_path / "out")
    assert oracle.calls - sum(map(len, resumed.examples.values())) == 3 * 5
    pd.testing.assert_frame_equal(resumed.rows, straight.rows)
    assert path.read_text() == (tmp_path / "straight" / "limits.csv").read_text()
    fewer = detection_limits(oracle, heads, **{**SMALL, "count": 3}, out=tmp_path / "out")
    assert fewer.rows["site"].nunique() == 3
    with pytest.raises(OutputError, match="another detector, cohort or grid"):
        detection_limits(oracle, heads, **{**SMALL, "sizes": [5, 13]}, out=tmp_path / "out")
    assert len(read_rows(path)) == len(straight.rows)
    for text in ("site,subject\n0,p\n", path.read_text().replace(",healthy,0.0,", ",healthy,x,")):
        path.write_text(text)
        with pytest.raises(OutputError, match=r"limits\.csv is damaged"):
            detection_limits(oracle, heads, **SMALL, out=tmp_path / "out")


def test_files_are_written(known, tmp_path):
    known.failures = [{"scan": "<script>alert(1)</script>", "reason": "torn & <b>bad</b>"}]
    write_limits(known, tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {f"limits.{s}" for s in ("html", "json", "csv", "png", "svg", "pdf")}
    page = (tmp_path / "limits.html").read_text()
    assert "<script" not in page and "<b>bad" not in page and "torn &amp; &lt;b&gt;" in page
    assert "Faintest found" in page and page.count("<article") == sum(
        map(len, known.examples.values())
    )
    addresses = [part.partition('"')[0] for part in page.split('href="')[1:]]
    assert all(a.startswith(("#", "data:")) for a in addresses) and 'src="' not in page
    again = pd.read_csv(tmp_path / "limits.csv")
    assert len(again) == len(known.rows)
    stored = json.loads((tmp_path / "limits.json").read_text(), parse_constant=pytest.fail)
    assert len(stored["cells"]) == len(known.table) and len(stored["limits"]) == 2 * 2 * 4
    assert (tmp_path / "limits.svg").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sizes": [5]}, "two or more diameters"),
        ({"sizes": [0, 5]}, "two or more diameters"),
        ({"sizes": [5, math.nan]}, "two or more diameters"),
        ({"contrasts": [0, 1]}, "other than 0"),
        ({"contrasts": []}, "other than 0"),
        ({"count": 0}, "count must be 1"),
        ({"overlap": 1.0}, "overlap in"),
        ({"kind": "tumour"}, "need a phantom"),
        ({"phantom": "somewhere"}, "not both"),
    ],
)
def test_wrong_arguments_are_refused(heads, options, reason):
    with pytest.raises(ArgumentError, match=reason):
        detection_limits(Oracle(heads), heads, **{**SMALL, **options})


def test_a_bad_scan_stops_nothing(heads):
    flat = heads[0].with_data(np.full_like(heads[0].data, 3.0))
    oracle = Oracle(heads)
    limits = detection_limits(oracle, [flat, *heads[1:4]], **SMALL)
    assert (limits.table["planted"] == 3).all()
    assert limits.failures == [{"scan": "scan 1", "reason": "array: it can't be scored."}]
    with pytest.raises(ArgumentError, match="no lesion could be planted"):
        detection_limits(oracle, [flat], **SMALL)
    with pytest.raises(ArgumentError, match="no scans"):
        detection_limits(oracle, [], **SMALL)


def test_cohorts_give_their_held_out_healthy_scans(toy):
    cohort = Cohort.read(toy())
    source = scan_source(cohort, "test", 0)
    names = [name for _, name, _ in source.scans]
    assert source.length() == "px"
    assert len(names) == 12 and all(n.startswith("test0") for n in names)
    assert sorted(names) != names and source.about["subjects"] == 12
    assert [n for _, n, _ in scan_source(cohort, "test", 0).scans] == names
    assert all(n.startswith("val0") for _, n, _ in scan_source(cohort, "val", 0).scans)
    sizes = source.sizes()
    assert len(sizes) == 6 and sizes[0] >= 2 and sizes[-1] < 20
    with pytest.raises(ArgumentError, match="test or val"):
        scan_source(cohort, "train", 0)


# ---------------------------------------------------------------------- the phantom


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    simulate(out, healthy=3, lesioned=1, spacing=3.0, seed=4)
    return out


@pytest.mark.parametrize("kind", ["wmh", "tumour", "infarct", "bleed"])
def test_phantom_lesions_of_all_sizes_share_a_place(simulated, kind):
    source = PhantomSource(simulated, kind)
    place = source.site(1, 24.0)
    assert place.name == "sub-006"  # beyond the four of the cohort
    healthy = make_subject(PhantomConfig(spacing=3.0, seed=4), 5)
    assert (as_scan(healthy, source.config).data == place.twin.data).all()
    lesions = {size: place.grow(size)(1.0) for size in (8.0, 24.0, 16.0)}
    flat = [lesion.centre[:2] for lesion in lesions.values()]
    if kind != "infarct":  # a wedge's middle moves towards its base as it shrinks
        np.testing.assert_allclose(flat, [flat[0]] * 3, atol=0.02)
        plane = place.twin.affine[2, 3]  # each is cut at the same part of its height
        heights = [(lesion.centre[2] - plane) / size for size, lesion in lesions.items()]
        assert heights[0] != 0
        np.testing.assert_allclose(heights, heights[0], atol=2e-3)
    assert lesions[8.0].extent < lesions[16.0].extent < lesions[24.0].extent
    again, twice = place.grow(16.0)(1.0), place.grow(16.0)(0.5)
    np.testing.assert_array_equal(again.scan.data, lesions[16.0].scan.data)
    np.testing.assert_array_equal(again.mask, twice.mask)
    assert 0 < twice.reached / again.reached < 0.8
    if kind != "tumour":  # nothing is pushed: the rest of the brain is its twin's
        away = ~(np.abs(again.scan.data - place.twin.data)[0] > 0)
        assert away.mean() > 0.9 and not (away & again.mask).all()


def test_phantom_settings_are_checked(simulated, tmp_path):
    assert PhantomSource(simulated / "cohort.csv", "blob").sizes()[0] >= 6
    with pytest.raises(ArgumentError, match="no lesion of the kind 'tumor'.*'tumour'"):
        PhantomSource(simulated, "tumor")
    for text in ("{", "[]", '{"simulated": true, "wrong": 1}', '{"simulated": false}', "[" * 9999):
        (tmp_path / "phantom.json").write_text(text)
        with pytest.raises(CohortError, match=r"phantom\.json: holds no settings"):
            PhantomSource(tmp_path, "blob")
    for part in ('"size": [4000000, 4000000]', '"spacing": -1', '"kinds": ["x"]', '"seed": 1e400'):
        (tmp_path / "phantom.json").write_text(f'{{"simulated": true, {part}}}')
        with pytest.raises(CohortError, match=r"phantom\.json: "):
            PhantomSource(tmp_path, "blob")
    with pytest.raises(ArgumentError, match="positive factors"):
        detection_limits(Oracle([]), phantom=simulated, kind="wmh", contrasts=[-1])
