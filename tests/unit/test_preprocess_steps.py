"""Steps inside the preprocessing: settings, the way back, learning, channels, several processes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from normscan.cohort import Cohort, CohortRow
from normscan.detector import Detector
from normscan.detector.finding import Finding
from normscan.detector.survey import survey
from normscan.errors import ArgumentError, CohortError, NormscanError, ScanError
from normscan.parallel import each
from normscan.preprocess import Preprocess
from normscan.preprocess.chain import run_steps
from normscan.preprocess.pipeline import LEARNING_SCANS
from normscan.preprocess.presets import PRESETS
from normscan.preprocess.samples import Preparation
from normscan.preprocess.settings import expanded
from normscan.preprocess.steps import STEPS, Working, step
from normscan.scan import Scan
from normscan.training.data import PreparedSet

AS_IT_IS = {"scaling": "none", "crop": "none", "foreground": "all"}


@pytest.fixture(autouse=True)
def own_steps(tmp_path, monkeypatch):
    """A cache and a registry of its own for each test."""
    monkeypatch.setenv("NORMSCAN_CACHE", str(tmp_path / "step cache"))
    Preprocess(steps=("reorient",))  # the modules of steps are loaded
    before = dict(STEPS)
    yield
    STEPS.clear()
    STEPS.update(before)


def oblique(spacing, degrees=(8, -25, 12), origin=(-12.0, 30.0, 5.0), order=(2, 0, 1)):
    """An oblique, anisotropic affine whose axes are permuted and partly run backwards."""
    affine = np.eye(4)
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    affine[:3, :3] = (turn @ np.diag([1, -1, 1]) @ np.diag(spacing))[:, order]
    affine[:3, 3] = origin
    return affine


def volume(rng, shape=(19, 24, 15), spacing=(1.0, 1.4, 2.7), **options):
    return Scan.from_array(
        rng.uniform(1, 2, shape).astype(np.float32), affine=oblique(spacing, **options)
    )


def at_world(array, affine, places):
    """Linear interpolation of (*shape) at (n, 3) millimetres; zero outside."""
    index = nib.affines.apply_affine(np.linalg.inv(affine), places)
    return map_coordinates(array, index.T, order=1, mode="constant")


def millimetres(affine, shape):
    return nib.affines.apply_affine(affine, np.indices(shape).reshape(len(shape), -1).T)


def rows(folder, scans, **options):
    """Rows of a cohort that lie on disk as NIfTI files."""
    made = []
    for i, scan in enumerate(scans):
        path = folder / f"s{i:02d}.nii.gz"
        nib.save(nib.Nifti1Image(scan.data[0], scan.affine), path)
        made.append(CohortRow(f"s{i:02d}", f"s{i:02d}", (path,), label=0, **options))
    return made


# --- the way back


def turned(angle=20.0, grow=1.1):
    world = np.eye(4)
    world[:3, :3] = grow * Rotation.from_euler("z", angle, degrees=True).as_matrix()
    world[:3, 3] = (3.0, -2.0, 1.0)
    return world


def register_turn():
    @step("turn")
    def turn(working: Working, angle: float = 20.0) -> Working:
        """Move the patient, as a registration would; the values stay."""
        scan = working.scan
        return working.moved(scan.data, turned(angle) @ scan.affine, None, turned(angle))


@pytest.mark.parametrize(
    "steps", [("reorient", "resample=2.4"), ("resample=2.2", "turn", "reorient")]
)
def test_maps_come_back_as_scipy_samples_them(rng, steps):
    register_turn()
    scan = volume(rng)
    prepared = Preprocess(size=24, steps=steps, **AS_IT_IS)(scan, 3)
    working = prepared.working
    on_steps = rng.normal(size=working.scan.shape).astype(np.float32)
    # The place of each voxel of the scan in the world that the steps end in, by matrices alone.
    world = turned() if "turn" in steps else np.eye(4)
    places = nib.affines.apply_affine(world, millimetres(scan.affine, scan.shape))
    expected = at_world(on_steps, working.scan.affine, places).reshape(scan.shape)
    np.testing.assert_allclose(working.back(on_steps[None])[0], expected, atol=2e-4)
    assert np.abs(expected).max() > 1
    # From the working grid it goes through the grid of the steps.
    found = rng.normal(size=(2, *prepared.grid.shape)).astype(np.float32)
    halfway = prepared.grid.backward(found)
    both = [at_world(h, working.scan.affine, places).reshape(scan.shape) for h in halfway]
    np.testing.assert_allclose(prepared.back(found), both, atol=2e-4)


def test_a_place_in_the_patient_stays_where_it_is(rng):
    """A bright spot of the prepared image comes back to its millimetres, whatever the steps."""
    register_turn()
    scan = volume(rng, (40, 36, 30), (1.0, 1.2, 1.9))
    centre = scan.affine @ [21, 15, 17, 1]
    r = np.linalg.norm(millimetres(scan.affine, scan.shape) - centre[:3], axis=1)
    scan = scan.with_data((100 * np.exp(-((r / 5) ** 2))).reshape(1, *scan.shape).astype("f4"))
    settings = Preprocess(size=48, steps=("turn", "reorient", "resample=1.5"), **AS_IT_IS)
    prepared = settings(scan, 3)
    back = prepared.back(prepared.image)[0]
    mass = back / back.sum()
    found = (mass.ravel()[:, None] * millimetres(scan.affine, scan.shape)).sum(axis=0)
    np.testing.assert_allclose(found, centre[:3], atol=0.25)
    assert back.argmax() == scan.data.argmax()


def test_without_steps_nothing_changes(rng):
    scan = volume(rng)
    prepared = Preprocess(size=16, **AS_IT_IS)(scan, 3)
    assert prepared.working is None
    found = rng.normal(size=(1, *prepared.grid.shape)).astype(np.float32)
    np.testing.assert_array_equal(prepared.back(found), prepared.grid.backward(found))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_size_of_a_voxel_counts_the_steps(rng, dims):
    register_turn()
    scan = volume(rng, spacing=(1.0, 1.4, 2.0))
    settings = Preprocess(
        size=16, spacing=2.5, steps=("turn", "reorient", "resample=2"), **AS_IT_IS
    )
    # A slice keeps the 2 mm of the step across; the turn enlarges the patient by 1.1.
    covered = (2.5**2 * 2 if dims == 2 else 2.5**3) / 1.1**3
    assert settings(scan, dims).voxel == pytest.approx(covered / scan.voxel_volume, rel=1e-6)


def test_volumes_are_cut_into_slices_after_the_steps(rng):
    scan = volume(rng, (20, 24, 15), (1.0, 1.0, 3.0), degrees=(0, 0, 0))
    prepared = Preprocess(size=16, steps=("reorient", "resample=1.5"), **AS_IT_IS)(scan, 2)
    ras = nib.as_closest_canonical(nib.Nifti1Image(scan.data[0], scan.affine))
    length = ras.shape[2] * ras.header.get_zooms()[2]
    assert prepared.grid.shape == (16, 16, round(length / 1.5))
    assert prepared.back(prepared.image).shape == scan.data.shape


def test_a_given_foreground_goes_through_the_steps(rng):
    seen = []

    @step("look")
    def look(working: Working) -> Working:
        seen.append(working.foreground)
        return working

    scan = volume(rng)
    given = np.zeros(scan.shape, bool)
    given[4:15, 6:18, 3:12] = True
    prepared = Preprocess(size=24, steps=("look", "reorient"), scaling="none")(scan, 3, given)
    np.testing.assert_array_equal(seen[0], given)
    back = prepared.back(prepared.foreground[None].astype(np.float32))[0] > 0.5
    assert (back == given).mean() > 0.97 and back.sum() == pytest.approx(given.sum(), rel=0.1)


# --- settings


def test_steps_are_kept_as_plain_values():
    given = ["reorient", "resample=2", {"window": {"name": ("brain", "bone")}}]
    settings = Preprocess(steps=given)
    assert settings.steps == (
        "reorient",
        {"resample": {"spacing": 2.0}},
        {"window": {"name": ["brain", "bone"]}},
    )
    assert Preprocess(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings
    nested = {"resample": {"spacing": 2.0}}
    settings = Preprocess(steps=(nested,))
    nested["resample"]["spacing"] = 9.0
    settings.to_dict()["steps"][0]["resample"]["spacing"] = 9.0
    assert settings.steps == ({"resample": {"spacing": 2.0}},)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (["resampel"], "Did you mean 'resample'"),
        (["resample=wide"], "spacing is 'wide'"),
        ([{"resample": {"spacings": 1}}], "no argument 'spacings'"),
        (["reorient=1"], "takes no argument"),
        ([{"resample": 5}], "is no step"),
        ([7], "is no step"),
        ([None], "is no step"),
        (["resample=["], "is no step"),
        ([{"reorient": {}, "resample": {}}], "one name"),
        (["unfinished"], "needs a value for 'amount'"),
        ([{"unfinished": {"amount": object()}}], "can't be saved"),
    ],
)
def test_wrong_steps_are_refused_at_once(steps, reason):
    @step("unfinished")
    def unfinished(working: Working, amount) -> Working:
        return working

    with pytest.raises(ArgumentError, match=reason.replace("(", r"\(")):
        Preprocess(steps=steps)


def test_a_preset_is_filled_in_and_what_is_given_wins(monkeypatch):
    detector = Detector("ae_dense", preset="tiny", preprocess={"preset": "brain-ct", "size": 32})
    found = detector.preprocess
    assert (found.preset, found.size, found.scaling) == ("brain-ct", 32, "none")
    assert [s if isinstance(s, str) else next(iter(s)) for s in found.steps] == [
        s if isinstance(s, str) else next(iter(s)) for s in PRESETS["brain-ct"]["steps"]
    ]
    given = {"preset": "brain-ct", "scaling": "minmax", "steps": ["reorient"]}
    found = Detector("ae_dense", preset="tiny", preprocess=given).preprocess
    assert (found.scaling, found.steps) == ("minmax", ("reorient",))
    with pytest.raises(ArgumentError, match="Did you mean 'brain-mri'"):
        Detector("ae_dense", preset="tiny", preprocess={"preset": "brain-mir"})
    # What was saved is complete: it doesn't depend on the presets of a later version.
    monkeypatch.delitem(PRESETS, "brain-ct")
    assert expanded(detector.preprocess.to_dict()) == detector.preprocess.to_dict()


# --- bad scans


@pytest.mark.parametrize("harm", ["constant", "nan", "empty", "crash"])
def test_steps_that_destroy_a_scan_are_told_with_its_name(rng, tmp_path, harm):
    @step("harm")
    def destroy(working: Working) -> Working:
        data = working.scan.data
        if harm == "crash":
            raise RuntimeError("sitk::ERROR: Filter does not work on this")
        if harm == "empty":
            return dataclasses.replace(working, foreground=np.zeros(working.scan.shape, bool))
        return working.with_image(np.full_like(data, np.nan if harm == "nan" else 3.0))

    scan = dataclasses.replace(volume(rng), source=tmp_path / "one.nii.gz")
    with pytest.raises(ScanError, match="one.nii.gz") as caught:
        Preprocess(size=16, steps=("harm",))(scan, 3)
    assert ("'harm' failed" in str(caught.value)) == (harm == "crash")
    assert str(tmp_path) not in str(caught.value)


# --- learning


def register_learner(log):
    def learn(workings, top=None, extra=0.0):
        assert iter(workings) is workings
        peaks = [float(w.scan.data.max()) for w in workings]
        log.append(peaks)
        return {"top": max(peaks), "extra": extra}

    @step("double")
    def double(working: Working) -> Working:
        return working.with_image(2 * working.scan.data)

    @step("to_top", learn=learn)
    def to_top(working: Working, top: float | None = None, extra: float = 0.0) -> Working:
        assert top is not None
        return working.with_image(working.scan.data / top + extra)


def test_a_step_learns_from_what_the_steps_before_it_make(rng, tmp_path):
    log = []
    register_learner(log)
    scans = [Scan.from_array(rng.uniform(1, 2 + i, (6, 5, 4)).astype("f4")) for i in range(3)]
    settings = Preprocess(steps=("double", {"to_top": {"extra": 1}}, "to_top"))
    learnt = settings.learn(rows(tmp_path, scans))
    peaks = [2 * float(s.data.max()) for s in scans]
    assert log[0] == pytest.approx(peaks)
    assert log[1] == pytest.approx([p / max(peaks) + 1 for p in peaks])
    first, second = {"top": max(peaks), "extra": 1.0}, {"top": 2.0, "extra": 0.0}
    assert learnt.steps[0] == "double"
    assert learnt.steps[1]["to_top"] == pytest.approx(first)
    assert learnt.steps[2]["to_top"] == pytest.approx(second)
    assert settings.steps[2] == "to_top"
    assert Preprocess(**learnt.to_dict()) == learnt


def test_learning_holds_one_scan_at_a_time_and_looks_at_fifty(rng, tmp_path, monkeypatch):
    loaded = []
    known = rows(tmp_path, [Scan.from_array(rng.uniform(1, 2, (4, 4, 4)))])[0]
    many = [dataclasses.replace(known, scan=f"n{i}") for i in range(2 * LEARNING_SCANS + 7)]
    load = CohortRow.load
    monkeypatch.setattr(CohortRow, "load", lambda row: loaded.append(row.scan) or load(row))

    def learn(workings):
        for n, _ in enumerate(workings, start=1):
            assert len(loaded) == n  # none is read ahead
        return {"a": n}

    @step("count", learn=learn)
    def count(working: Working, a: int = 0) -> Working:
        return working

    assert Preprocess(steps=("count",)).learn(many).steps == ({"count": {"a": LEARNING_SCANS}},)
    numbers = [int(name[1:]) for name in loaded]
    assert numbers[0] == 0 and numbers[-1] == len(many) - 1
    assert set(np.diff(numbers)) <= {2, 3}


def test_bad_scans_are_passed_over_and_learning_from_none_is_refused(rng, tmp_path):
    log = []
    register_learner(log)
    good = rows(tmp_path, [Scan.from_array(rng.uniform(1, 2, (4, 4, 4)))])
    bad = [CohortRow("gone", "gone", (tmp_path / "gone.nii.gz",), label=0)]
    assert Preprocess(steps=("to_top",)).learn(bad + good).steps[0]["to_top"]["top"] > 1
    assert len(log[0]) == 1
    with pytest.raises(CohortError, match="gone.nii.gz"):
        Preprocess(steps=("to_top",)).learn(bad)
    with pytest.raises(CohortError, match="no healthy"):
        Preprocess(steps=("to_top",)).learn([])


# --- channels


def register_windows():
    @step("three")
    def three(working: Working) -> Working:
        data = working.scan.data
        names = ("low", "middle", "high")
        scan = working.scan.with_data(np.concatenate([data, data**2, 1 - data]), names)
        return dataclasses.replace(working, scan=scan)


def test_the_network_gets_the_channels_that_the_steps_make(toy):
    register_windows()
    cohort = Cohort.read(toy())
    found = survey(list(cohort.part("train")), Preprocess(steps=("three",)))
    assert found.channels == ("low", "middle", "high")
    options = {"preprocess": {"steps": ["three"], "scaling": "none", "crop": "none"}}
    detector = Detector("ae_dense", preset="tiny", steps=1, **options).fit(cohort, device="cpu")
    assert detector.arguments["channels"] == 3
    assert detector.predict(cohort[0].load()).map.shape == cohort[0].load().shape


def test_a_wrong_value_of_a_step_is_the_users_and_no_bad_scan(toy):
    with pytest.raises(ArgumentError, match="resample"):
        survey(list(Cohort.read(toy())), Preprocess(steps=("resample=-1",)))


# --- findings


def test_notes_and_facts_reach_the_finding(rng, toy):
    @step("remark")
    def remark(working: Working) -> Working:
        return working.noted("the field is uneven", bias=1.25, unknown=math.nan)

    detector = Detector("mean_image", preset="tiny", preprocess={"steps": ["remark"]})
    cohort = Cohort.read(toy())
    finding = detector.fit(cohort, device="cpu").predict(cohort[0].load())
    assert finding.to_dict()["preprocessing"] == {
        "notes": ["the field is uneven"],
        "facts": {"bias": 1.25, "unknown": None},
    }
    assert json.dumps(finding.to_dict(), allow_nan=False)
    bare = Finding(cohort[0].load(), None, 1.0)
    assert bare.to_dict()["preprocessing"] == {"notes": [], "facts": {}}


# --- several processes


def test_samples_are_the_same_bits_for_any_number_of_processes(rng, tmp_path):
    scans = [volume(rng, (14, 12, 10)) for _ in range(5)]
    known = rows(tmp_path, scans, columns={"age": 40})
    known.insert(2, CohortRow("gone", "gone", (tmp_path / "gone.nii.gz",)))
    settings = Preprocess(size=16, steps=("reorient", "resample=1.5"), scaling="median")
    prepare = Preparation(settings, 2, ("image",), cache=False)
    sets = []
    for workers in (1, 2):
        done = []
        sets.append(
            PreparedSet.create(
                tmp_path / str(workers), iter(known), prepare, prepare.slices, None, workers,
                lambda items, done=done: (done.append(1) or item for item in items),
            )
        )  # fmt: skip
        assert len(done) == 6
    assert sets[0].failures == sets[1].failures and sets[0].failures[0][0] == "gone"
    for name in ("images.raw", "foregrounds.raw", "index.json"):
        first, second = (tmp_path / n / name for n in "12")
        assert first.read_bytes() == second.read_bytes(), name
    assert len(sets[0]) > 5 * 5


def test_results_keep_their_order_and_few_wait():
    drawn = []
    numbers = (drawn.append(i) or i for i in range(30))
    results = each(math.sqrt, numbers, 2)
    assert next(results) == 0 and len(drawn) <= 6
    assert list(results) == [math.sqrt(i) for i in range(1, 30)]
    assert list(each(math.sqrt, [], 2)) == []


def test_a_killed_process_is_told():
    with pytest.raises(NormscanError, match="memory"):
        list(each(os._exit, [3], 2))
    with pytest.raises(ArgumentError, match="workers is 0"):
        list(each(abs, [1], 0))


def test_nothing_between_two_thick_slices_is_lost_on_the_way_back():
    scan = Scan.from_array(np.random.default_rng(0).random((8, 8, 6)), spacing=(1, 1, 5))
    working = run_steps([{"resample": {"spacing": 1.0}}], Working.of(scan))
    for z in range(2, 28):  # the voxels of 1 mm that lie inside the scan's slices of 5 mm
        spot = np.zeros((1, *working.scan.shape), np.float32)
        spot[0, 4, 4, z] = 1
        back = working.back(spot)
        assert back.sum() == pytest.approx(1 / 5, abs=1e-6)
        assert np.unravel_index(back.argmax(), back.shape) == (0, 4, 4, z // 5)
