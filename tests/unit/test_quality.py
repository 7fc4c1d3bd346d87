"""The quality gate: healthy scans of the kind pass, other kinds and damaged ones don't."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from normscan.cohort import Cohort
from normscan.errors import ArgumentError, CohortError
from normscan.io import read_scan
from normscan.phantom import simulate
from normscan.quality import Gate, GateBuilder
from normscan.quality.features import turned
from normscan.quality.gate import Thinned
from normscan.quality.measures import header, is_hounsfield, stated
from normscan.quality.nearest import upper_limit
from normscan.scan import Scan

SPACING = (2.0, 2.5, 4.0)


def head(seed: int, dims: int = 3, lesion: bool = False) -> np.ndarray:
    """A head with eyes at one end and a neck below: front, back, up and down differ."""
    rng = np.random.default_rng(seed)
    shape = (36, 40, 32)[:dims]
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")

    def ball(middle, size):
        return sum(((a - m) / s) ** 2 for a, m, s in zip(axes, middle, size, strict=False)) < 1

    size = np.array([0.62, 0.75, 0.7]) * rng.uniform(0.9, 1.1, 3)
    image = 400.0 * ball((0, 0, 0.1), size)
    image += 200.0 * ball((0, 0.1, 0.2), size * 0.6)
    for x in (-0.3, 0.3):
        image += 500.0 * ball((x, 0.55, 0.0), np.full(3, 0.14))
    if dims == 3:
        image[ball((0, -0.1, -0.9), (0.3, 0.3, 0.4))] = 350.0
    if lesion:
        image[ball((0.25, -0.25, 0.2), np.full(3, 0.17))] = 900.0
    image *= rng.uniform(0.9, 1.1)
    return np.abs(image + rng.normal(0, rng.uniform(12, 20), shape))


def volume(seed: int, **options: bool) -> Scan:
    return Scan.from_array(head(seed, **options), spacing=SPACING)


def picture(array: np.ndarray) -> Scan:
    return Scan.from_array(array)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate.fit(map(volume, range(16)), held_out=map(volume, range(100, 104)))


@pytest.fixture(scope="module")
def flat() -> Gate:
    return Gate.fit(picture(head(i, dims=2)) for i in range(20))


def changed(scan: Scan, data: np.ndarray) -> Scan:
    return Scan(np.asarray(data, np.float32)[None], scan.affine, scan.channels)


# ------------------------------------------------------------------ the same kind


def test_healthy_scans_pass(gate):
    verdicts = [gate.check(volume(i)) for i in range(200, 220)]
    assert [v.status for v in verdicts].count("ok") >= 19
    assert all(v.passed for v in verdicts)


def test_lesioned_scans_are_not_refused_and_seldom_flagged(gate):
    verdicts = [gate.check(volume(i, lesion=True)) for i in range(200, 212)]
    assert all(v.passed for v in verdicts)
    assert [v.status for v in verdicts].count("ok") >= 9


@pytest.mark.parametrize("order", list(itertools.permutations(range(3)))[1:])
def test_other_orientations_of_the_file_change_nothing(gate, order):
    import nibabel as nib

    scan = volume(300)
    image = nib.Nifti1Image(scan.data[0], scan.affine)
    wanted = np.stack([np.array(order, float), np.array([1, -1, -1])], axis=1)
    stored = image.as_reoriented(wanted)
    moved = Scan.from_array(np.asarray(stored.dataobj), affine=stored.affine)
    assert header(moved)["orientation"] != "RAS"
    one, other = gate.check(scan), gate.check(moved)
    assert (one.status, one.reasons) == (other.status, other.reasons)
    assert one.measures["extent"] == other.measures["extent"]
    for view, value in one.measures["likeness"].items():
        assert other.measures["likeness"][view] == pytest.approx(value, abs=0.05)


def test_the_phantom_passes_with_and_without_tumours(tmp_path: Path):
    table = simulate(tmp_path / "phantom", healthy=26, lesioned=5, kinds=("tumour",), spacing=3.0)
    rows = list(Cohort.read(table))
    healthy = [r.load() for r in rows if r.label == 0]
    made = Gate.fit(healthy[:20])
    assert [made.check(s).status for s in healthy[20:]].count("ok") >= 5
    sick = [made.check(r.load()) for r in rows if r.label == 1]
    assert all(v.passed for v in sick)
    assert [v.status for v in sick].count("ok") >= 4


# ------------------------------------------------------------------- other kinds


def knee() -> np.ndarray:
    """Two bones, one above the other, with a gap between them."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in (36, 40, 32)], indexing="ij")
    bones = (x**2 + y**2 < 0.15) & (np.abs(z) > 0.08)
    flesh = x**2 + y**2 < 0.4
    return 150.0 * flesh + 500.0 * bones + np.random.default_rng(0).normal(0, 15, x.shape)


def part(data: np.ndarray, axis: int, where: slice, value: float) -> np.ndarray:
    data = data.copy()
    np.moveaxis(data, axis, 0)[where] = value
    return data


def copied(data: np.ndarray) -> np.ndarray:
    data = data.copy()
    data[:, :, 12:18] = data[:, :, 12:13]
    return data


REFUSED = {
    "knee": (lambda d: knee(), "looks unlike"),
    "noise": (lambda d: np.random.default_rng(1).normal(500, 90, d.shape), "mostly noise"),
    "inverted": (lambda d: d.max() - d, "looks unlike"),
    "hounsfield": (lambda d: np.round(d * 2 - 1024), "Hounsfield"),
    "half empty": (lambda d: part(d, 2, slice(16, None), 0), "at one end are empty"),
    "front half empty": (lambda d: part(d, 1, slice(0, 20), 0), "at one end are empty"),
    "constant half": (lambda d: part(d, 0, slice(18, None), 300), "at one end are empty"),
    "slab": (lambda d: part(d, 2, slice(14, 18), 0), "though others around"),
    "copies": (copied, "repeat the one before"),
    "constant": (lambda d: np.full(d.shape, 7.0), "Every voxel is 7"),
    "not finite": (lambda d: part(d, 0, slice(0, 1), np.nan), "are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_and_damage_are_refused(gate, name):
    change, reason = REFUSED[name]
    scan = volume(300)
    verdict = gate.check(changed(scan, change(scan.data[0])))
    assert verdict.status == "refuse", verdict
    assert not verdict.passed
    assert any(reason in text for text in verdict.reasons), verdict.reasons
    json.dumps(verdict.to_dict(), allow_nan=False)


FLAGGED = {
    "upside-down": (lambda d: d[:, :, ::-1], "upside-down"),
    "back to front": (lambda d: d[:, ::-1], "upside-down or back to front"),
    "one empty slice": (lambda d: part(d, 2, slice(15, 16), 0), "though others around"),
    "hundredfold": (lambda d: d * 100, "The values go from"),
}


@pytest.mark.parametrize("name", FLAGGED)
def test_doubtful_scans_are_flagged(gate, name):
    change, reason = FLAGGED[name]
    scan = volume(300)
    verdict = gate.check(changed(scan, change(scan.data[0])))
    assert verdict.status == "flag" or name == "one empty slice", verdict
    assert any(reason in text for text in verdict.reasons), verdict.reasons


def test_left_and_right_are_not_told_apart(gate):
    scan = volume(300)
    assert gate.check(changed(scan, scan.data[0][::-1])).status == "ok"


@pytest.mark.parametrize(("factor", "status"), [(1.0, "ok"), (1.5, "flag"), (2.5, "refuse")])
def test_field_of_view_and_spacing(gate, factor, status):
    scan = Scan.from_array(head(300), spacing=tuple(factor * s for s in SPACING))
    verdict = gate.check(scan)
    assert verdict.status == status
    if status == "refuse":
        assert (
            "The field of view left-right is 180 mm, training scans had 72 mm." in verdict.reasons
        )
        assert "The voxel spacing left-right is 5 mm, training scans had 2 mm." in verdict.reasons


def test_finer_voxels_are_only_flagged(gate):
    fine = head(300).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    rng = np.random.default_rng(0)
    scan = Scan.from_array(fine + rng.normal(0, 1, fine.shape), spacing=[s / 3 for s in SPACING])
    reasons = [r for r in gate.check(scan).reasons if "field of view" in r]
    assert not reasons
    assert gate.check(scan).measures["extent"] == [72.0, 100.0, 128.0]


def test_pictures_have_no_millimetres(flat):
    verdict = flat.check(picture(head(300, dims=2).repeat(3, 0).repeat(3, 1)))
    assert not any(" mm" in r for r in verdict.reasons)
    assert verdict.measures["extent"] == []


def test_a_wide_picture_is_flagged(flat):
    wide = np.concatenate([head(300, dims=2)] * 3, axis=1)
    verdict = flat.check(picture(wide))
    assert any("times as wide as high" in r for r in verdict.reasons)


def test_other_axes_and_channels_are_refused(gate, flat):
    assert "2D, the training scans are 3D" in gate.check(picture(head(0, dims=2))).reasons[0]
    assert any("3D, the training scans are 2D" in r for r in flat.check(volume(0)).reasons)
    two = Scan.from_array(np.stack([head(0)] * 2), SPACING, channels=("a", "b"))
    assert gate.check(two).reasons == ("The scan has 2 channels, the training scans have 1.",)


def test_colour_and_grey_pictures_side_by_side():
    def colour(i):
        return Scan.from_array(
            np.stack([head(i, dims=2)] * 3), channels=("red", "green", "blue"), dtype="uint8"
        )

    made = Gate.fit([*map(colour, range(6)), *(picture(head(i, dims=2)) for i in range(6, 12))])
    assert made.limits["channels"] == [1, 3]
    assert made.check(colour(20)).status == made.check(picture(head(20, dims=2))).status == "ok"


# ----------------------------------------------------------------------- modality


def named(seed: int, channel: str) -> Scan:
    return dataclasses.replace(volume(seed), channels=(channel,))


def test_a_contrast_that_the_file_states_is_compared():
    made = Gate.fit(named(i, "T1w") for i in range(8))
    assert made.check(named(50, "t1")).status == "ok"
    assert made.check(named(50, "image")).status == "ok"
    assert "The file's contrast is flair" in made.check(named(50, "FLAIR")).reasons[0]
    assert "The file's modality is CT" in made.check(named(50, "ct")).reasons[0]


def test_the_modality_of_a_series_is_stated():
    scan = volume(0)
    object.__setattr__(scan, "series", SimpleNamespace(modality="CT"))
    assert stated(scan) == ("CT", "")
    for said, meant in (("OT", ""), ("CR", "DX"), ("mr", "MR")):
        scan.series.modality = said
        assert stated(scan) == (meant, "")
    assert stated(named(0, "FLAIR")) == ("MR", "flair")
    assert stated(volume(0)) == ("", "")


def test_hounsfield_units():
    rng = np.random.default_rng(0)
    body = rng.normal(40, 30, 5000)
    assert is_hounsfield(np.concatenate([body, rng.normal(-1000, 8, 2000)]))
    assert is_hounsfield(np.concatenate([body, [-3024.0]]))
    assert not is_hounsfield(body)
    assert not is_hounsfield(rng.normal(0, 1, 5000))
    assert not is_hounsfield(np.linspace(-5000, 5000, 5000))


def test_a_gate_of_ct_refuses_what_is_no_ct():
    def ct(i):
        return Scan.from_array(np.where(head(i) > 150, 40 + head(i) / 20, -1000), spacing=SPACING)

    made = Gate.fit(map(ct, range(8)))
    assert made.check(ct(30)).status == "ok"
    assert "no Hounsfield units" in made.check(volume(30)).reasons[0]


# ------------------------------------------------------------------ few and many


def test_the_limit_of_one_scan_is_wide():
    made = Gate.fit([volume(0)])
    assert made.nearest is None
    assert made.check(volume(1)).status == "ok"
    assert made.check(picture(head(0, dims=2))).status == "refuse"


@pytest.mark.parametrize("n", [2, 3, 5])
def test_few_scans(n):
    made = Gate.fit(map(volume, range(n)))
    assert made.check(volume(50)).passed
    scan = volume(50)
    noise = changed(scan, np.random.default_rng(0).normal(500, 90, scan.shape))
    assert made.check(noise).status == "refuse"


def test_identical_training_scans():
    made = Gate.fit([volume(0)] * 4)
    assert made.check(volume(0)).status == "ok"
    assert made.check(changed(volume(0), knee())).status == "refuse"
    json.dumps(made.to_dict(), allow_nan=False)


def test_slices_of_one_subject_say_nothing_of_others():
    # Ten copies of each of three heads: told apart by subject, the limits are those of three.
    copies = [volume(i % 3) for i in range(30)]
    alone = Gate.fit(copies).nearest
    apart = Gate.fit(copies, subjects=[f"s{i % 3}" for i in range(30)]).nearest
    assert all(apart.limits[v] > 2 * alone.limits[v] for v in ("picture", "texture"))
    assert apart.far["picture"] > alone.far["picture"]


def test_no_usable_scan():
    with pytest.raises(CohortError, match="no healthy training scan"):
        Gate.fit([])
    builder = GateBuilder()
    builder.add(changed(volume(0), np.ones((4, 5, 6))))
    with pytest.raises(CohortError):
        builder.build()


def test_a_stream_is_thinned_evenly_and_never_held():
    alive: list[int] = []

    def stream():
        for i in range(40):
            scan = picture(head(i, dims=2))
            alive.append(i)
            yield scan

    builder = GateBuilder(most=8)
    for scan in stream():
        builder.add(scan)
    made = builder.build()
    assert made.counts == (40, 0)
    assert len(made.nearest.vectors) <= 8
    names = [name for name, _ in builder._train.kept]
    assert names == [f"0 {i}" for i in range(1, 41, 8)]
    assert len(alive) == 40


def test_a_gate_of_a_cohort(toy):
    cohort = Cohort.read(toy(2, 1))
    train, val = cohort.part("train"), cohort.part("val")
    made = Gate.of_cohort(train, val)
    streamed = Gate.fit(
        (r.load() for r in train), (r.load() for r in val), [r.subject for r in train]
    )
    assert made.nearest.names == tuple(r.scan for r in train)
    unnamed = dataclasses.replace(made, nearest=dataclasses.replace(made.nearest, names=()))
    assert unnamed.to_dict() == streamed.to_dict()
    assert made.counts == (48, 6)
    assert Gate.of_cohort(train, val, most=10).counts == (10, 6)
    missing = dataclasses.replace(train[0], paths=(Path("absent.npy"),))
    assert Gate.of_cohort([missing, *train], val).counts == (48, 6)
    healthy = [r for r in cohort.part("test") if r.label == 0]
    assert [made.check(r.load()).status for r in healthy].count("ok") >= 9


def test_thinning_keeps_every_stride():
    thinned = Thinned(5)
    for i in range(100):
        if thinned.wants():
            thinned.keep(str(i), None)
    assert [int(n) for n, _ in thinned.kept] == list(range(0, 100, thinned.stride))
    assert len(thinned.kept) <= 5


def test_one_damaged_training_scan_does_not_open_the_gate():
    scans = [picture(head(i, dims=2)) for i in range(60)]
    scans[7] = picture(part(scans[7].data[0], 0, slice(18, None), 0))
    made = Gate.fit(scans)
    half = picture(part(head(99, dims=2), 0, slice(18, None), 0))
    assert made.check(half).status == "refuse"


# ------------------------------------------------------------ limits and storage


def test_the_limit_holds_for_log_normal_values():
    rng = np.random.default_rng(0)
    beyond = []
    for _ in range(400):
        values = np.exp(rng.normal(1, 0.3, 30))
        beyond.append(np.mean(np.exp(rng.normal(1, 0.3, 200)) > upper_limit(values, 30, 0.05)))
    assert 0.005 < np.mean(beyond) <= 0.05


def test_the_limit_widens_with_fewer_subjects():
    values = np.exp(np.random.default_rng(0).normal(0, 0.3, 60))
    limits = [upper_limit(values, n) for n in (2, 5, 20, 60)]
    assert limits == sorted(limits, reverse=True)
    # One value: the prior spread alone, a t distribution with the weight of the prior.
    reach = stats.t.ppf(0.99, 2) * 0.25 * np.sqrt(2)
    assert upper_limit(np.array([3.0]), 1) == pytest.approx(3 * np.exp(reach))


def test_turned_thumbnails():
    image = np.arange(64)
    ways = turned(image, 2)
    assert {k: len(v) for k, v in ways.items()} == {
        "as it is": 2,
        "upside-down or back to front": 2,
        "turned": 4,
    }
    square = image.reshape(8, 8)
    assert any(np.array_equal(w, square[:, ::-1].ravel()) for w in ways["as it is"])
    assert any(np.array_equal(w, np.rot90(square).ravel()) for w in ways["turned"])
    cube = turned(np.arange(216), 3)
    assert sum(map(len, cube.values())) == 48
    assert any(
        np.array_equal(w, np.arange(216).reshape(6, 6, 6)[::-1].ravel()) for w in cube["as it is"]
    )


def test_storage_restores_the_gate(gate):
    text = json.dumps(gate.to_dict(), allow_nan=False)
    back = Gate.from_dict(json.loads(text))
    assert json.dumps(back.to_dict()) == text
    for scan in (volume(300), volume(301, lesion=True), changed(volume(0), knee())):
        assert back.check(scan) == gate.check(scan)


def test_the_same_scans_make_the_same_gate(gate):
    again = Gate.fit(map(volume, range(16)), held_out=map(volume, range(100, 104)))
    assert json.dumps(again.to_dict()) == json.dumps(gate.to_dict())


def test_checking_leaves_the_scan_alone(gate):
    scan = volume(300)
    before = scan.data.copy()
    gate.check(scan)
    np.testing.assert_array_equal(scan.data, before)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.pop("limits"),
        lambda s: s["limits"].pop("half"),
        lambda s: s.update(format=99),
        lambda s: s.update(counts=[1]),
        lambda s: s["nearest"].update(scale="1 2 3"),
        lambda s: s["nearest"]["vectors"].__setitem__(0, "1 x 3"),
        lambda s: s["nearest"]["limits"].clear(),
        lambda s: s.update(nearest=7),
    ],
)
def test_a_damaged_gate_is_refused(gate, change):
    state = json.loads(json.dumps(gate.to_dict()))
    change(state)
    with pytest.raises(ArgumentError, match="no stored quality gate"):
        Gate.from_dict(state)


# --------------------------------------------------------------------- real scans


def test_real_pictures(shared: Path):
    chest = Cohort.read(shared / "data" / "chest_xray_kermany_224")
    rows = list(chest.part("train"))[::10][:100]
    made = Gate.fit(r.load() for r in rows)
    healthy = [r for r in chest.part("test") if r.label == 0][::12]
    assert [made.check(r.load()).status for r in healthy].count("ok") >= 0.9 * len(healthy)
    brain = Cohort.read(shared / "data" / "lgg_flair_slices").part("test")
    foreign = [made.check(r.load()).status for r in list(brain)[::20]]
    assert foreign.count("refuse") >= 0.9 * len(foreign)


def test_a_ct_volume_at_a_gate_of_brain_mr(gate, shared: Path):
    ct = read_scan(shared / "data" / "healthy_brain_3d" / "scct.nii.gz")
    assert gate.check(ct).status == "refuse"
