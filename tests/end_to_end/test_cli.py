"""The user's path: simulate, look, train, predict, evaluate; flat scans and volumes."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy.spatial.transform import Rotation
from sklearn.metrics import average_precision_score, roc_auc_score
from tests.toy import toy_scan

import normscan as ns
from normscan.cli.main import main
from normscan.cohort import CohortRow
from normscan.evaluation import evaluate

TINY = ("--preset", "tiny", "--device", "cpu")


def run(*arguments):
    return main([str(a) for a in arguments])


def strict(path):
    """Read JSON that holds no NaN and no infinity."""

    def refuse(text):
        raise AssertionError(f"{path} holds {text}")

    return json.loads(path.read_text(), parse_constant=refuse)


def fit(method, cohort, out, *more):
    assert run("fit", method, "--cohort", cohort, "--out", out, *TINY, *more) == 0
    return out


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom") / "cohort"
    options = ("--healthy", 12, "--lesioned", 4, "--spacing", 4)
    assert run("phantom", "--out", out, *options) == 0
    # `predict` knows no foreground masks; without them both commands see the same.
    table = pd.read_csv(out / "cohort.csv", dtype=str).drop(columns="foreground")
    table.to_csv(out / "plain.csv", index=False)
    return out


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("flat") / "run"
    return fit("ae_dense", phantom / "plain.csv", out, "--steps", 4)


@pytest.fixture(scope="module")
def predicted(phantom, trained):
    table = pd.read_csv(phantom / "plain.csv", keep_default_na=False)
    test = table[table["split"] == "test"].reset_index(drop=True)
    out = trained.parent / "predicted"
    assert run("predict", trained, *[phantom / p for p in test["path"]], "--out", out) == 0
    return test, out


def stem(path):
    return path.rsplit("/", 1)[-1].removesuffix(".nii.gz")


# ---------------------------------------------------------------- the user's path


def test_the_cohort_is_described(phantom, capsys):
    assert run("cohort", phantom) == 0
    assert "16 scans of 16 subjects" in capsys.readouterr().out
    assert run("cohort", phantom, "--json") == 0
    assert json.loads(capsys.readouterr().out)


def test_evaluate_gives_the_figures_of_scikit_learn(phantom, trained, predicted):
    out = trained.parent / "evaluation"
    options = ("--cohort", phantom / "plain.csv", "--out", out)
    assert run("evaluate", trained, *options) == 0
    assert {p.name for p in out.iterdir()} == {
        "results.json",
        "scans.csv",
        "report.html",
        "figures",
    }
    results = strict(out / "results.json")
    scans = pd.read_csv(out / "scans.csv")
    metrics = results["metrics"]
    auroc = roc_auc_score(scans["label"], scans["score"])
    assert metrics["image_auroc"]["value"] == pytest.approx(auroc, abs=1e-9)
    ap = average_precision_score(scans["label"], scans["score"])
    assert metrics["image_ap"]["value"] == pytest.approx(ap, abs=1e-9)

    test, folder = predicted
    maps, masks = [], []
    for row in test.itertuples():
        found = nib.load(folder / f"{stem(row.path)}_map.nii.gz").get_fdata().ravel()
        maps.append(found)
        lesion = np.zeros(len(found), bool)
        if row.mask:
            lesion = nib.load(phantom / row.mask).get_fdata().ravel() > 0
        masks.append(lesion)
    maps, masks = np.concatenate(maps), np.concatenate(masks)
    assert metrics["pixel_ap"]["value"] == pytest.approx(
        average_precision_score(masks, maps), abs=1e-6
    )
    assert metrics["pixel_auroc"]["value"] == pytest.approx(roc_auc_score(masks, maps), abs=1e-6)
    marked = maps > results["pixels"]["threshold"]
    dice = 2 * (marked & masks).sum() / (marked.sum() + masks.sum())
    assert metrics["dice"]["value"] == pytest.approx(dice, abs=1e-9)
    assert set(results["baselines"]) == {"mean_image", "image_statistics"}
    for entry in [v for v in results["verdict"] if v["metric"] == "image_auroc"]:
        other = results["baselines"][entry["baseline"]]["image_auroc"]["value"]
        assert entry["difference"] == pytest.approx(auroc - other, abs=1e-9)
    assert results["tested"]["cohort"] == "plain.csv" and results["tested"]["preset"] == "tiny"
    page = (out / "report.html").read_text()
    assert "In image AUROC it is" in page and results["tested"]["cohort_sha256"] in page
    assert results["failures"] == []
    # The scores of `predict` are those of `evaluate`.
    scores = dict(zip(scans["scan"], scans["score"], strict=True))
    for row in test.itertuples():
        finding = strict(folder / f"{stem(row.path)}_finding.json")
        assert finding["score"] == pytest.approx(scores[row.scan], rel=1e-6)


def test_no_overlays_no_threads_the_same_findings(phantom, trained, predicted, tmp_path):
    test, folder = predicted
    scans = [phantom / p for p in test["path"]]
    options = ("--overlay", "false", "--workers", 0, "--threads", 1)
    assert run("predict", trained, *scans, "--out", tmp_path, *options) == 0
    assert not list(tmp_path.glob("*_overlay.png")) and list(folder.glob("*_overlay.png"))
    for path in tmp_path.glob("*_finding.json"):
        one, other = strict(path), strict(folder / path.name)
        for said in (one, other):
            del said["seconds"], said["stages"]
        assert one == other
    assert (tmp_path / "scores.csv").read_text() == (folder / "scores.csv").read_text()


def test_the_python_api_gives_the_same_numbers(phantom, trained, predicted, tmp_path):
    same = ns.create("ae_dense", preset="tiny", steps=4)
    same.fit(phantom / "plain.csv", tmp_path / "run", device="cpu")
    weights = "model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (trained / weights).read_bytes()
    test, folder = predicted
    paths = [phantom / row.path for row in test.itertuples()]
    rows = [CohortRow(path.name, path.name, (path,)) for path in paths]
    found = [finding for _, finding in same.predict_cohort(rows, details=True)]
    for row, finding in zip(test.head(2).itertuples(), found, strict=False):
        # Alone, outside of its batch, sums may be taken in another order.
        alone = same.predict(phantom / row.path)
        np.testing.assert_allclose(alone.map, finding.map, atol=1e-6)
        assert alone.score == pytest.approx(finding.score, rel=1e-5)
        stored = strict(folder / f"{stem(row.path)}_finding.json")
        for name in ("score", "p_value", "threshold", "pixel_threshold", "components"):
            assert json.loads(json.dumps(finding.to_dict()[name])) == stored[name], name
        saved = nib.load(folder / f"{stem(row.path)}_map.nii.gz").get_fdata(dtype=np.float32)
        np.testing.assert_array_equal(finding.map, saved.reshape(finding.map.shape))
    cohort = ns.Cohort.read(phantom / "plain.csv")
    results = evaluate(same, cohort, tmp_path / "eval", baselines=())
    assert run("evaluate", trained, "--cohort", phantom / "plain.csv", "--out", tmp_path / "cli",
               "--baselines", "false") == 0  # fmt: skip
    assert strict(tmp_path / "cli/results.json")["metrics"] == json.loads(
        json.dumps(results["metrics"])
    )


def test_the_same_seed_gives_the_same_bits_and_another_one_others(phantom, trained, tmp_path):
    steps = ("--steps", 4)
    again = fit("ae_dense", phantom / "plain.csv", tmp_path / "again", *steps)
    other = fit("ae_dense", phantom / "plain.csv", tmp_path / "other", *steps, "--seed", 1)
    first, second, third = ((f / "model.safetensors").read_bytes() for f in (trained, again, other))
    assert first == second != third


def test_options_from_a_yaml_file(phantom, trained, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"cohort: {phantom / 'plain.csv'}\nsteps: 4\ndevice: cpu\n")
    out = tmp_path / "run"
    assert run("fit", "ae_dense", "--preset", "tiny", "--config", config, "--out", out) == 0
    assert (out / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_maps_lie_on_their_scans(trained, tmp_path):
    rng = np.random.default_rng(3)
    image = (toy_scan(rng, 2, 1, True)[0][0] * 50000).clip(0, 65535).astype(np.uint16)
    affine = np.diag([1.2, 0.8, 3.0, 1.0])
    affine[:3, :3] = (
        Rotation.from_euler("xyz", [3, 5, 12], degrees=True).as_matrix() @ affine[:3, :3]
    )
    affine[:3, 3] = (-20, 7, 3)
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = b"DOE^JOHN"
    volume = nib.Nifti1Image(image[..., None], affine, header)
    volume.set_sform(affine, 1)
    nib.save(volume, tmp_path / "flat.nii.gz")
    Image.fromarray(image).save(tmp_path / "grey.png")
    out = tmp_path / "out"
    files = (tmp_path / "flat.nii.gz", tmp_path / "grey.png")
    assert run("predict", trained, *files, "--out", out, "--force") == 0

    found = nib.load(out / "flat_map.nii.gz")
    mask = nib.load(out / "flat_mask.nii.gz")
    stored = nib.load(tmp_path / "flat.nii.gz")
    for written in (found, mask):
        assert written.shape == stored.shape
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-5)
        assert written.header.get_xyzt_units() == ("mm", "sec")
        assert int(written.header["sform_code"]) == int(stored.header["sform_code"])
        assert b"DOE" not in bytes(written.header["descrip"])
    assert found.get_data_dtype() == np.float32
    assert mask.get_data_dtype() == np.uint8
    finding = strict(out / "flat_finding.json")
    threshold = finding["pixel_threshold"]
    marked = found.get_fdata(dtype=np.float32) > threshold
    np.testing.assert_array_equal(marked, mask.get_fdata() > 0)
    for component in finding["components"]:
        index = np.linalg.inv(stored.affine) @ [*component["peak_mm"], 1]
        peak = found.get_fdata()[tuple(index[:3].round().astype(int))]
        assert peak == pytest.approx(component["peak"], rel=1e-6)

    with tifffile.TiffFile(out / "grey_map.tif") as file:
        page = file.pages[0]
        assert (page.shape, page.dtype, page.bitspersample) == (image.shape, np.float32, 32)
    assert Image.open(out / "grey_mask.png").size == Image.open(tmp_path / "grey.png").size
    assert Image.open(out / "grey_overlay.png").size[0] > 0
    assert b"DOE^JOHN" not in b"".join(p.read_bytes() for p in out.iterdir())


def test_sixteen_bits_survive(trained, tmp_path):
    """Two pictures that differ in the lower byte only get different maps."""
    rng = np.random.default_rng(3)
    image = (toy_scan(rng, 2, 1, False)[0][0] * 400).clip(0, 65535).astype(np.uint16)
    coarse = (image // 64 * 64).astype(np.uint16)
    for name, values in (("fine", image), ("coarse", coarse)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    fine, rough = (
        ns.load(trained).predict(tmp_path / f"{n}.png", force=True).map for n in ("fine", "coarse")
    )
    assert np.abs(fine - rough).max() > 1e-3


def test_the_methods_are_listed(capsys):
    assert run("methods", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"ae_dense", "mean_image", "patchcore"} <= {r["id"] for r in rows}
    for row in rows:
        assert row["summary"] and row["family"] and {"paper", "code"} <= set(row["presets"])
    assert run("methods") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def test_help_version_and_nothing(capsys):
    for arguments in ((), ("--help",), ("-h",)):
        assert run(*arguments) == 0
        assert "usage: normscan COMMAND" in capsys.readouterr().out
    assert run("--version") == 0
    assert capsys.readouterr().out.strip() == f"normscan {ns.__version__}"
    for arguments in (("fit", "--help"), ("fit", "ae_dense", "--help")):
        assert run(*arguments) == 0 and "usage" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        run("predict", "--help")
    assert stop.value.code == 0 and "usage" in capsys.readouterr().out


# ---------------------------------------------------------------- volumes

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", [8, -5, 12], degrees=True).as_matrix() @ np.diag(
    [1.0, 1.3, 4.0]
)
OBLIQUE[:3, 3] = (-12.0, 30.0, 5.0)


def save_volume(path, data, affine):
    header = nib.Nifti1Header()
    header.set_xyzt_units("mm")
    header["descrip"] = b"DOE^JOHN"
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine, header), path)


def mirrored(data, affine):
    """Store the same anatomy with the first axis running the other way."""
    turned = affine.copy()
    turned[:3, 3] = (affine @ [data.shape[0] - 1, 0, 0, 1])[:3]
    turned[:3, 0] *= -1
    return data[::-1], turned


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Volumes on an oblique, anisotropic grid; one training file and one test file are damaged."""
    folder = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(5)
    rows = []
    for i in range(11):
        lesion = i >= 9
        image, mask = toy_scan(rng, 3, 1, lesion)
        name = f"v{i:02d}"
        save_volume(folder / f"{name}.nii.gz", image[0][:, :, ::2] * 1000, OBLIQUE)
        split = "train" if i < 5 else "val" if i < 7 else "test"
        row = {"path": f"{name}.nii.gz", "subject": name, "label": int(lesion), "split": split}
        if lesion:
            save_volume(folder / f"{name}_mask.nii.gz", mask[:, :, ::2], OBLIQUE)
            row["mask"] = f"{name}_mask.nii.gz"
        rows.append(row)
    whole = (folder / "v00.nii.gz").read_bytes()
    for name, split in (("broken", "train"), ("torn", "test")):
        (folder / f"{name}.nii.gz").write_bytes(whole[: len(whole) // 2])
        rows.append({"path": f"{name}.nii.gz", "subject": name, "label": 0, "split": split})
    pd.DataFrame(rows).fillna("").to_csv(folder / "cohort.csv", index=False)
    image = nib.load(folder / "v10.nii.gz")
    save_volume(folder / "las.nii.gz", *mirrored(image.get_fdata(), image.affine))
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ("mean_image", "--dims", 2),
        ("ae_dense", "--dims", 2, "--steps", 4),
        ("mean_image", "--dims", 3, "--size", 16),
        ("ae_dense", "--dims", 3, "--patch", 16, "--steps", 2),
    ],
    ids=["slices", "slices of a network", "whole", "patches"],
)
def test_volumes(volumes, tmp_path, options):
    out = fit(options[0], volumes / "cohort.csv", tmp_path / "run", *options[1:])
    assert ns.load(out).arguments["dims"] == options[2]
    files = (volumes / "v10.nii.gz", volumes / "las.nii.gz")
    assert run("predict", out, *files, "--out", tmp_path / "out") == 0
    first, second = (strict(tmp_path / f"out/{n}_finding.json") for n in ("v10", "las"))
    assert first["score"] == pytest.approx(second["score"], rel=1e-4)
    ras, las = (nib.load(tmp_path / f"out/{n}_map.nii.gz") for n in ("v10", "las"))
    for found, name in ((ras, "v10"), (las, "las")):
        stored = nib.load(volumes / f"{name}.nii.gz")
        assert found.shape == stored.shape
        np.testing.assert_allclose(found.affine, stored.affine, atol=1e-4)
        assert found.header.get_xyzt_units()[0] == "mm"
    values = ras.get_fdata()
    assert (values > 0).mean() > 0.1
    # The same millimetres hold the same value.
    index = np.argwhere(np.ones(values.shape, bool))
    mm = nib.affines.apply_affine(ras.affine, index)
    there = nib.affines.apply_affine(np.linalg.inv(las.affine), mm).round().astype(int)
    np.testing.assert_allclose(
        las.get_fdata()[tuple(there.T)], values.ravel(), atol=1e-3 * values.max()
    )
    if first["components"]:
        assert first["components"][0]["volume_mm3"] == pytest.approx(
            first["components"][0]["voxels"] * abs(np.linalg.det(OBLIQUE[:3, :3])), rel=1e-4
        )


def test_bad_scans_are_left_out_and_no_identity_is_written(volumes, tmp_path, capsys):
    out = fit("mean_image", volumes, tmp_path / "run")
    assert "left out broken" in capsys.readouterr().err
    state = strict(out / "detector.json")
    (left_out,) = state["training"]["left_out"]
    assert left_out.startswith("scan-")  # it travels
    assert ns.load(out).training["left_out"] == ["broken"]
    assert state["training"]["cohort_size"]["train"] == 6
    options = ("--cohort", volumes, "--out", out / "evaluation", "--baselines", "false")
    assert run("evaluate", out, *options) == 0
    results = strict(out / "evaluation/results.json")
    assert [f["scan"] for f in results["failures"]] == ["torn"]
    assert results["failures"][0]["reason"].startswith("torn: ")
    assert len(pd.read_csv(out / "evaluation/scans.csv")) == 4
    files = (volumes / "v10.nii.gz", volumes / "torn.nii.gz", volumes / "v09.nii.gz")
    assert run("predict", out, *files, "--out", out / "predicted") == 1
    assert "torn: left out: " in capsys.readouterr().err
    found = {p.name for p in (out / "predicted").glob("*_finding.json")}
    assert found == {"v09_finding.json", "v10_finding.json"}
    texts = [out / "detector.json", out / "card.md", out / "config.json", out / "log.jsonl"]
    texts += [out / "evaluation/report.html", *(out / "predicted").glob("*.json")]
    for path in texts:
        text = path.read_text() if path.exists() else ""
        text = re.sub("base64,[A-Za-z0-9+/=]*", "", text)  # pictures may spell any three letters
        assert "DOE" not in text, path
        names = [f"{volumes}/v{i:02d}" for i in range(7)] + [f"{volumes}/broken", f"{volumes}/torn"]
        assert not [name for name in names if name in text], path
    for path in out.rglob("*.nii.gz"):
        assert b"DOE" not in bytes(nib.load(path).header["descrip"])


def test_a_mask_of_another_size_is_reported(phantom, trained, tmp_path):
    table = pd.read_csv(phantom / "plain.csv", dtype=str, keep_default_na=False)
    row = table.index[table["label"] == "1"][0]
    nib.save(nib.Nifti1Image(np.ones((5, 5, 1), np.uint8), np.eye(4)), phantom / "small.nii.gz")
    table.loc[row, "mask"] = "small.nii.gz"
    table.to_csv(phantom / "small.csv", index=False)
    out = tmp_path / "out"
    options = ("--cohort", phantom / "small.csv", "--out", out, "--baselines", "false")
    assert run("evaluate", trained, *options) == 0
    failures = strict(out / "results.json")["failures"]
    assert [f["scan"] for f in failures] == [table.loc[row, "scan"]]
    assert failures[0]["reason"].startswith("its mask: ")
    scans = pd.read_csv(out / "scans.csv")["scan"]
    assert table.loc[row, "scan"] not in set(scans)
