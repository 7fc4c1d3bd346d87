"""Registration recovers known moves, brain extraction finds the brain, maps come back in place."""

from __future__ import annotations

import stat
from functools import cache, partial

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from normscan.errors import ArgumentError, ScanError
from normscan.preprocess.align import align, to_matrix, world_grid
from normscan.preprocess.brain import refine, signed_distance, stripped_brain, with_brain
from normscan.preprocess.chain import run_steps
from normscan.preprocess.registration import doubts
from normscan.preprocess.spatial import crop_foreground, to_shape
from normscan.preprocess.steps import Working, sample
from normscan.preprocess.template import Template, find_space, mni152
from normscan.scan import Scan

COARSE = {"register": {"to": "mni152-2mm", "finest": 6.0}}


@cache
def coarse_template():
    """MNI152 every 4 mm: enough to register a copy of itself."""
    whole = mni152()
    image, grid = world_grid(whole.image, whole.affine, 4.0)
    brain, _ = world_grid(whole.brain.astype(np.float32), whole.affine, 4.0)
    return Template(image, brain > 0.5, grid)


def moved_brain(
    spacing=(4.0, 4.0, 4.0), turn=(12, -6, 8), shift=(9, -14, 20), stretch=0.93, tilt=25
):
    """The template as a scan of a person moved by a known affine, on an oblique grid.

    Returns the scan, and the known way from its mm to MNI152 mm.
    """
    template = coarse_template()
    person = np.eye(4)  # MNI mm to patient mm
    person[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * stretch
    person[:3, 3] = shift
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", tilt, degrees=True).as_matrix() @ np.diag(spacing)
    shape = tuple(int(230 / s) for s in spacing)
    affine[:3, 3] = (person @ [0, -22, 9.5, 1])[:3] - affine[:3, :3] @ (np.array(shape) - 1) / 2
    way = np.linalg.inv(template.affine) @ np.linalg.inv(person) @ affine
    data = sample(np.stack([template.image, template.brain]), way, shape)
    image = np.where(data[1] > 0.5, data[0] * 800, 0)
    return Scan.from_array(image, affine=affine), np.linalg.inv(person)


def error_in_brain(found, known):
    """Mean distance in mm, over the template's brain, between two ways to the template."""
    template = coarse_template()
    points = np.c_[np.argwhere(template.brain), np.ones(template.brain.sum())] @ template.affine.T
    return np.linalg.norm(points @ (found @ np.linalg.inv(known)).T - points, axis=1).mean()


def test_registration_recovers_a_known_affine_on_an_oblique_anisotropic_grid():
    scan, known = moved_brain(spacing=(3.0, 3.0, 6.0))
    mask = scan.data[0] > 0
    working = Working.of(scan, mask)
    done = run_steps([COARSE], working)
    assert error_in_brain(done.to_world, known) < 1.0
    assert done.scan.shape == (97, 115, 97)
    assert done.facts["register_correlation"] > 0.9
    assert done.facts["register_volume"] == pytest.approx(1 / 0.93**3, rel=0.05)
    assert done.notes == ()
    again = run_steps([COARSE], Working.of(scan, mask))
    np.testing.assert_array_equal(done.to_world, again.to_world)  # the same bits
    np.testing.assert_array_equal(done.scan.data, again.scan.data)


@pytest.mark.parametrize("inverted", [False, True])
def test_registration_of_a_rigid_move_keeps_lengths(inverted):
    scan, known = moved_brain(stretch=1.0)
    image, mask = scan.data[0], scan.data[0] > 0
    if inverted:  # another contrast: white matter dark, fluid bright
        image = np.where(mask, 900 - image, 0)
    found, correlation = align(image, scan.affine, coarse_template(), mask, dof=6, finest=8.0)
    assert error_in_brain(found.matrix, known) < 1.5
    assert found.lengths == pytest.approx((1, 1))
    assert found.rotation == pytest.approx(
        Rotation.from_matrix(known[:3, :3]).magnitude() * 57.3, abs=1.5
    )
    assert (correlation < 0) == inverted


def test_parameters_keep_the_centre_and_fill_up():
    centre, target = np.array([1.0, 2, 3]), np.array([-5.0, 7, 9])
    for count in (6, 7, 9, 12):
        p = np.zeros(count)
        p[3:] = 5.0
        p[:3] = [1, 0, -2]
        moved = to_matrix(p, centre, target) @ [*centre, 1]
        np.testing.assert_allclose(moved[:3], target + p[:3])
    one = to_matrix(np.array([0, 0, 0, 0, 0, 0, 7.0]), centre, target)
    np.testing.assert_allclose(one[:3, :3], np.eye(3) * np.exp(0.1))


def test_a_blob_goes_to_the_template_and_back_to_its_place():
    scan, known = moved_brain(spacing=(3.0, 3.0, 5.0))
    both = Scan.from_array(np.concatenate([scan.data, scan.data[:, ::-1]]), affine=scan.affine,
                           channels=("t1", "other"))  # fmt: skip
    steps = [
        "reorient",
        {"resample": {"spacing": 3}},
        {"register": {"to": "mni152-2mm", "finest": 8}},
    ]
    done = run_steps(steps, Working.of(both, scan.data[0] > 0))
    assert done.scan.data.shape == (2, 97, 115, 97)
    middle = np.linalg.inv(scan.affine) @ np.linalg.inv(known) @ [20, -30, 25, 1]
    index = np.indices(scan.shape) - middle[:3].reshape(3, 1, 1, 1)
    blob = ((index * np.reshape([3.0, 3.0, 5.0], (3, 1, 1, 1))) ** 2).sum(0) < 22**2
    there = done.onward(blob[None].astype(np.float32), order=1)
    place = np.argwhere(there[0] > 0.5).mean(0) @ done.scan.affine[:3, :3].T
    assert np.abs(place + done.scan.affine[:3, 3] - [20, -30, 25]).max() < 4
    back = done.back(there)[0] > 0.5
    assert 2 * (back & blob).sum() / (back.sum() + blob.sum()) > 0.95


def test_sri24_lies_as_brats_files_do(shared):
    from normscan.io import read_scan

    space = find_space("sri24")
    folder = shared / "data/brain_tumor_3d/BraTS-GLI-00001-000"
    scan = read_scan(folder / "BraTS-GLI-00001-000-t1n.nii.gz")
    assert space.shape == scan.shape
    np.testing.assert_allclose(space.affine, scan.affine)
    # The brain of that case lies where a registered brain would be put.
    found = np.argwhere(scan.data[0] > 0).mean(0)
    brain = space.template.brain
    points = np.c_[np.argwhere(brain), np.ones(brain.sum())] @ space.template.affine.T
    put = (points @ (np.linalg.inv(space.affine) @ space.world).T).mean(0)[:3]
    assert np.abs(found - put).max() < 8
    turn = space.world[:3, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


def test_registration_to_a_file(tmp_path):
    scan, known = moved_brain()
    template = coarse_template()
    path = tmp_path / "own.nii.gz"
    nib.save(nib.Nifti1Image(template.image, template.affine), path)
    done = run_steps(
        [{"register": {"to": str(path), "finest": 8}}], Working.of(scan, scan.data[0] > 0)
    )
    assert done.scan.shape == template.image.shape
    assert error_in_brain(done.to_world, known) < 2.0


def head(template):
    """A template with fluid, skull and scalp around it, every 4 mm."""
    out = ndimage.distance_transform_edt(~template.brain) * 4.0
    image = np.select(
        [out == 0, out < 5, out < 9, out < 17], [template.image, 0.2, 0.05, 0.95], 0.0
    )
    rng = np.random.default_rng(1)
    padded = np.pad(image, 6) + 0.01 * np.abs(rng.normal(size=np.add(image.shape, 12)))
    affine = template.affine.copy()
    affine[:3, 3] -= 24
    return Scan.from_array(padded * 500, affine=affine), np.pad(template.brain, 6)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_atlas_extraction_finds_the_brain_in_a_head(monkeypatch):
    monkeypatch.setattr("normscan.preprocess.brain.align", partial(align, finest=6.0))
    scan, brain = head(coarse_template())
    done = run_steps(["brain_extraction"], Working.of(scan))
    assert dice(done.foreground, brain) > 0.93
    assert (done.scan.data[0][~done.foreground] == 0).all()
    assert done.facts["brain_ml"] == pytest.approx(done.foreground.sum() * 0.064)
    kept = with_brain(Working.of(scan), done.foreground, strip=False)
    np.testing.assert_array_equal(kept.scan.data, scan.data)


def test_an_extracted_brain_is_left_alone():
    scan, _ = moved_brain()
    done = run_steps([{"brain_extraction": {"method": "hd-bet"}}], Working.of(scan))
    expected = ndimage.binary_fill_holes(scan.data[0] > 0)
    assert done.facts["brain_was_extracted"] == 1
    assert dice(done.foreground, expected) > 0.999
    np.testing.assert_array_equal(done.scan.data, scan.data)
    assert stripped_brain(head(coarse_template())[0].data, 64.0) is None


def test_refinement_repairs_a_shifted_mask():
    scan, brain = head(coarse_template())
    wrong = np.roll(brain, 1, axis=0)  # 4 mm to the right
    better = refine(scan.data[0], wrong, scan.spacing)
    assert dice(better, brain) > dice(wrong, brain) + 0.01


def test_signed_distance_is_in_mm():
    mask = np.zeros((9, 9, 9), bool)
    mask[3:6, 3:6, 3:6] = True
    distance = signed_distance(mask, (1.0, 2.0, 5.0))
    assert distance[4, 4, 4] == 2 and distance[0, 4, 4] == -3 and distance[4, 4, 1] == -10


FAKE = """#!/usr/bin/env python3
import sys, nibabel, numpy
args = dict(zip(sys.argv[1:-1], sys.argv[2:]))
image = nibabel.load(args["-i"])
target = args.get("-m") or args["-o"].replace(".nii.gz", "_bet.nii.gz")
if "{mode}" == "fail":
    sys.exit("out of memory")
data = (numpy.asarray(image.dataobj) > 100).astype("uint8")
if "{mode}" == "shape":
    data = data[1:]
if "{mode}" != "none":
    nibabel.save(nibabel.Nifti1Image(data * ("{mode}" != "empty"), image.affine), target)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a program of a given name on the PATH that thresholds at 100."""
    import os
    import sys

    def make(name, mode="good"):
        path = tmp_path / name
        path.write_text(
            FAKE.replace("/usr/bin/env python3", sys.executable).replace("{mode}", mode)
        )
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return make


@pytest.mark.parametrize(
    ("method", "program"), [("hd-bet", "hd-bet"), ("synthstrip", "mri_synthstrip"),
                            ("synthstrip", "synthstrip-docker"), ("deepbet", "deepbet-cli")]
)  # fmt: skip
def test_tools_are_called_and_their_mask_is_used(fake, rng, method, program):
    fake(program)
    data = rng.uniform(1, 200, (1, 10, 11, 12))
    scan = Scan.from_array(data, spacing=2.0, channels=("t1",))
    done = run_steps([{"brain_extraction": {"method": method}}], Working.of(scan))
    np.testing.assert_array_equal(done.foreground, scan.data[0] > 100)


@pytest.mark.parametrize(
    ("mode", "error", "says"),
    [
        ("fail", ArgumentError, r"scan\.nii: synthstrip failed with code 1: out of memory"),
        ("shape", ScanError, r"scan\.nii: synthstrip wrote a mask of shape"),
        ("empty", ScanError, r"scan\.nii: synthstrip found no brain"),
        ("none", ScanError, r"scan\.nii: synthstrip wrote 0 masks"),
    ],
)
def test_a_failing_tool_says_so(fake, rng, tmp_path, mode, error, says):
    fake("mri_synthstrip", mode)
    data = rng.uniform(1, 200, (6, 7, 8))
    scan = Scan.from_array(data, source=tmp_path / "scan.nii")
    with pytest.raises(error, match=says):
        run_steps([{"brain_extraction": {"method": "synthstrip"}}], Working.of(scan))


@pytest.mark.parametrize("method", ["hd-bet", "synthstrip", "deepbet"])
def test_a_missing_tool_says_how_to_get_it(rng, monkeypatch, method):
    monkeypatch.setenv("PATH", "/nonexistent")
    scan = Scan.from_array(rng.uniform(1, 2, (6, 7, 8)))
    with pytest.raises(ArgumentError, match="To have it: .*install"):
        run_steps([{"brain_extraction": {"method": method}}], Working.of(scan))


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ({"register": {"to": "mni15"}}, "Did you mean 'mni152'"),
        ({"register": {"dof": 8}}, "dof is 8"),
        ({"register": {"order": 2}}, "order is 2"),
        ({"register": {"finest": 0.1}}, "finest"),
        ({"register": {"channel": 3}}, "no channel 3"),
        ({"brain_extraction": {"method": "bet"}}, "no method 'bet'"),
        ({"to_shape": {"shape": [8, 8]}}, "3 positive"),
        ({"to_shape": {"shape": [8, 8, 8], "spacing": 0}}, "positive"),
        ({"crop_foreground": {"margin": -1}}, "0 or more"),
    ],
)
def test_wrong_arguments_are_refused(rng, step, says):
    with pytest.raises(ArgumentError, match=says):
        run_steps([step], Working.of(Scan.from_array(rng.uniform(1, 2, (6, 7, 8)))))


def test_what_is_no_brain_is_refused(rng, tmp_path):
    noise = Scan.from_array(
        rng.normal(100, 20, (24, 24, 24)), spacing=8.0, source=tmp_path / "k.nii"
    )
    with pytest.raises(ScanError, match=r"k\.nii: register finds no brain"):
        run_steps([{"register": {"finest": 8}}], Working.of(noise))
    flat = Scan.from_array(rng.uniform(size=(30, 30)), source=tmp_path / "k.nii")
    for name in ("register", "brain_extraction", "check_brain"):
        with pytest.raises(ScanError, match=rf"k\.nii: {name} needs a volume"):
            run_steps([name], Working.of(flat))


def test_strange_alignments_are_noted():
    from normscan.preprocess.align import Alignment

    assert doubts("register", "s", Alignment(np.diag([1.1, 1.1, 1.1, 1]), 0.5, 1.0)) == []
    note = doubts("register", "s", Alignment(np.diag([1.6, 1.6, 1.6, 1]), 0.15, 0.5))[0]
    for word in ("mutual information", "volume", "lengths", "50%"):
        assert word in note
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("x", 60, degrees=True).as_matrix()
    assert "60 degrees" in doubts("register", "s", Alignment(turned, 0.5, 1.0))[0]


def test_crop_and_shape_keep_every_voxel_in_its_place(rng):
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix() @ affine[:3, :3]
    scan = Scan.from_array(rng.uniform(1, 2, (2, 20, 18, 16)), affine=affine, channels=("a", "b"))
    mask = np.zeros(scan.shape, bool)
    mask[5:9, 6:12, 4:7] = True
    cropped = crop_foreground(Working.of(scan, mask), margin=6.0)
    assert cropped.scan.shape == (4 + 6, 6 + 4, 3 + 4)
    np.testing.assert_array_equal(cropped.scan.data, scan.data[:, 2:12, 4:14, 2:9])
    back = cropped.back(cropped.scan.data)
    np.testing.assert_allclose(back[:, 3:11, 5:13, 3:8], scan.data[:, 3:11, 5:13, 3:8], atol=1e-5)
    assert back[:, :2].max() == 0
    shaped = to_shape(Working.of(scan, mask), [26, 18, 10])
    np.testing.assert_allclose(shaped.scan.data[:, 3:23], scan.data[..., 3:13], atol=1e-5)
    back = shaped.back(shaped.scan.data)
    np.testing.assert_allclose(back[:, 1:-1, 1:-1, 4:12], scan.data[:, 1:-1, 1:-1, 4:12], atol=1e-5)
    assert to_shape(Working.of(scan), [8, 8, 8], 5.0).scan.spacing == pytest.approx((5, 5, 5))
