"""The folder that `simulate` writes: layout, bits, table, refusals."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import nibabel
import numpy as np
import pytest

from normscan.errors import ArgumentError, OutputError
from normscan.phantom import PhantomConfig, simulate
from normscan.phantom.subject import Subject

SMALL = {"healthy": 4, "lesioned": 4, "spacing": 4.0}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("phantom") / "a", **SMALL).parent


def test_signature_and_configuration_agree() -> None:
    parameters = dict(inspect.signature(simulate).parameters)
    assert parameters.pop("out") and parameters.pop("progress")
    assert {k: p.default for k, p in parameters.items()} == {
        f.name: f.default for f in fields(PhantomConfig)
    }
    assert list(parameters) == [f.name for f in fields(PhantomConfig)]


def test_same_seed_same_bits_other_seed_other_bits(cohort: Path, tmp_path: Path) -> None:
    first = digest(cohort)
    assert digest(simulate(tmp_path / "b", **SMALL).parent) == first
    other = digest(simulate(tmp_path / "c", **SMALL, seed=1).parent)
    images = [name for name in first if name.endswith("FLAIR.nii.gz")]
    assert len(images) == 8 and all(first[n] != other[n] for n in images)


def test_a_subject_does_not_depend_on_the_counts(cohort: Path, tmp_path: Path) -> None:
    first = digest(cohort)
    more = digest(simulate(tmp_path / "b", healthy=3, lesioned=7, spacing=4.0).parent)
    common = [n for n in first if n.endswith(".nii.gz") and not n.startswith("sub-004")]
    common = [n for n in common if "/sub-004/" not in n]
    assert len(common) == 7 + 7 + 4
    assert all(first[n] == more[n] for n in common)


def test_layout_and_table(cohort: Path) -> None:
    rows = table(cohort / "cohort.csv")
    assert [r["label"] for r in rows] == ["0"] * 4 + ["1"] * 4
    assert {r["kind"] for r in rows[4:]} == {"wmh", "tumour", "infarct", "bleed"}
    assert {r["split"] for r in rows[4:]} == {"test"}
    assert [r["split"] for r in rows[:4]] == ["train", "train", "val", "test"]
    for row in rows:
        image = nibabel.load(cohort / row["path"])
        assert image.get_data_dtype() == np.uint16 and len(image.shape) == 2
        assert image.affine[2, 3] == pytest.approx(float(row["slice_z_mm"]), abs=1e-3)
        assert -10 <= image.affine[2, 3] <= 45
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), 4.0)
        assert (cohort / row["foreground"]).is_file()
        assert bool(row["mask"]) == (row["label"] == "1")
        if row["mask"]:
            mask = np.asarray(nibabel.load(cohort / row["mask"]).dataobj)
            assert mask.sum() * 16.0 == pytest.approx(float(row["lesion_area_mm2"]))
            assert set(np.unique(mask)) == {0, 1} and mask.sum() * 16.0 >= 10
    lesions = table(cohort / "lesions.csv")
    assert {r["subject"] for r in lesions} == {r["subject"] for r in rows[4:]}
    description = json.loads((cohort / "dataset_description.json").read_text())
    assert "SIMULATED" in description["Name"]
    assert json.loads((cohort / "phantom.json").read_text())["spacing"] == 4.0
    assert (cohort / "participants.tsv").read_text().startswith("participant_id\t")
    assert not list(cohort.parent.glob(".*partial*"))


def test_volumes_modalities_and_slices(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = simulate(
        tmp_path / "a", 1, 1, modalities=("T1w", "FLAIR"), dims=3, spacing=4.0, kinds=("tumour",),
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    rows = table(path)
    assert seen == [(1, 2), (2, 2)]
    assert nibabel.load(path.parent / rows[0]["path_T1w"]).shape == (48, 56, 48)
    assert float(rows[1]["lesion_volume_mm3"]) > 0 and "path" not in rows[0]
    path = simulate(tmp_path / "b", 2, 0, spacing=4.0, slices=2)
    rows = table(path)
    assert [r["scan"] for r in rows[:2]] == ["sub-001_acq-slice1", "sub-001_acq-slice2"]
    assert rows[0]["split"] == rows[1]["split"]
    assert (path.parent / "sub-001/anat/sub-001_acq-slice2_FLAIR.nii.gz").is_file()


def test_heights_fill_the_range() -> None:
    config = PhantomConfig(spacing=4.0, deformation=0.0)
    heights = [Subject(config, i).grids[0].affine[2, 3] for i in range(40)]
    assert -10 <= min(heights) < 0 and 35 < max(heights) <= 45
    assert np.mean(heights) == pytest.approx(17.5, abs=8)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        simulate(tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        simulate(tmp_path / "file" / "a", 1, 0, spacing=4.0)


def test_a_failed_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "a", 1, 0, spacing=4.0, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modalities": ("FLAR",)}, "Did you mean 'FLAIR'"),
        ({"modalities": ()}, "No modality"),
        ({"kinds": ("bleeds",)}, "Did you mean 'bleed'"),
        ({"kinds": ("wmh", "wmh")}, "named twice"),
        ({"dims": 4}, "dims is 4"),
        ({"spacing": 0.0}, "spacing is 0.0"),
        ({"healthy": -1}, "healthy is -1"),
        ({"healthy": 0, "lesioned": 0}, "healthy is 0"),
        ({"size": (64, 64)}, "cover"),
        ({"splits": (0.5, 0.1, 0.1)}, "add up to 1"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"heights": (40.0, 10.0)}, "heights is"),
        ({"diameter": (0.0, 10.0)}, "diameter is"),
        ({"mass_effect": 1.0}, "mass_effect is 1.0"),
        ({"dims": 3, "slices": 2}, "slices is 2"),
        ({"slices": 9}, "would miss it"),
    ],
)
def test_bad_parameters_are_named(settings: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        simulate(tmp_path / "a", **settings)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light() -> None:
    code = (
        "import sys, normscan.phantom as p; p.PhantomConfig(); "
        "print([m for m in ('numpy', 'scipy', 'nilearn', 'nibabel', 'pandas') if m in sys.modules "
        "and m != 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
