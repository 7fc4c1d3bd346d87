"""Further images of a case, each of its own shape: read, prepared, learnt from, missed, mapped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom
from torch import Tensor, nn

from normscan import registry
from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.detector import Detector, load
from normscan.detector.finding import Finding
from normscan.errors import ArgumentError, CohortError, ScanError
from normscan.evaluation import evaluate
from normscan.export.onnx import exported
from normscan.io import read_scan
from normscan.limits import detection_limits
from normscan.methods.base import Batch, Maps, Method, Phase, Player, Use, adam
from normscan.preprocess.cohort import prepare_cohort
from normscan.preprocess.pipeline import Preprocess
from normscan.preprocess.samples import Preparation
from normscan.registry import register
from normscan.scan import Scan
from normscan.training.data import PreparedSet
from normscan.training.loop import Trainer

OPTIONS = {"preprocess": {"scaling": "none", "crop": "none", "size": 32}, "gate": False}
SHAPE = (23, 40)  # of the photograph; the volume has another
COUNTS = {"train": 12, "val": 5, "test": 4}


class Alike(Method):
    """Foretells an image's mean from the photograph's; a case whose two don't fit is anomalous."""

    def __init__(self, names: tuple[str, ...], prediction: str) -> None:
        super().__init__()
        self.uses = {"further": Use(prediction=prediction)}
        self.names, self.line = names, nn.Linear(len(names), 1)

    def phases(self) -> list[Phase]:
        return [Phase("fit", [Player("line", [self], adam(0.1))], steps=200, batch_size=8)]

    def foretold(self, batch: Batch) -> Tensor:
        seen = [batch.further[n].flatten(1).mean(1) for n in self.names]
        return self.line(torch.stack(seen, 1))[:, 0]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return {"l2": (batch.image.flatten(1).mean(1) - self.foretold(batch)).square().mean()}

    def maps(self, batch: Batch) -> Maps:
        if len(batch.further) < len(self.names):
            return Maps(batch.image.mean(1, keepdim=True))
        away = (batch.image.flatten(1).mean(1) - self.foretold(batch)).abs()
        grid = batch.further[self.names[0]]
        return Maps(
            batch.image.mean(1, keepdim=True), away,
            further={self.names[0]: away.reshape(-1, 1, 1, 1) + 0.001 * grid.mean(1, keepdim=True)},
        )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def alike() -> Iterator[None]:
    """Register the toy for the time of these tests."""

    def toy_alike(
        dims: int = 2, channels: int = 1, size: int = 32,
        further: tuple[tuple[str, int], ...] = (("photo", 1),), prediction: str = "welcome",
    ) -> Method:  # fmt: skip
        """Compare two images of a case.

        Args:
            dims: axes.
            channels: of the image.
            size: pixels.
            further: the other images.
            prediction: whether all must be there.
        """
        return Alike(tuple(name for name, _ in further), prediction)

    register("toy_alike", paper="toy", dims=(2, 3), presets={"laptop": {}})(toy_alike)
    yield
    registry._CARDS.pop("toy_alike")


def write_cases(folder: Path, dims: int = 2, colour: bool = False) -> Path:
    """Cases of an image and a photograph of half its brightness; in anomalous ones of all of it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(5), []
    for split, count in COUNTS.items():
        for label in (0, 1) if split == "test" else (0,):
            for i in range(count):
                name, level = f"{split}{label}{i}", rng.uniform(0.3, 0.9)
                image = level + rng.normal(0, 0.02, (30, 26, 9)[:dims])
                np.save(folder / f"{name}.npy", image.astype(np.float32))
                photo = level * (1.0 if label else 0.5) + rng.normal(0, 0.01, SHAPE)
                row = {"scan": name, "path": f"{name}.npy", "label": label, "split": split}
                if colour:
                    rgb = np.stack([photo, photo * 0.9, photo * 0.8], -1)
                    Image.fromarray((255 * rgb).clip(0, 255).astype(np.uint8)).save(
                        folder / f"{name}.png"
                    )
                    rows.append({**row, "further_photo": f"{name}.png"})
                else:
                    np.save(folder / f"{name}_photo.npy", photo.astype(np.float32))
                    rows.append({**row, "further_photo": f"{name}_photo.npy"})
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def run(table, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    Detector("toy_alike", **OPTIONS).fit(Cohort.read(table), out)
    return out


def emptied(table: Path, *scans: str) -> Cohort:
    """The cohort without the photographs of some cases."""
    frame = pd.read_csv(table, keep_default_na=False)
    frame.loc[frame["scan"].isin(scans), "further_photo"] = ""
    return Cohort.from_table(frame, table.parent)


def findings(detector: Detector, rows: Iterable) -> dict[str, Finding]:
    return {row.scan: found for row, found in detector.predict_cohort(rows)}


# ---------------------------------------------------------------- end to end


def test_what_two_images_of_other_shapes_say_together_is_found(table, run):
    """The image alone shows nothing: of equal brightness are healthy and anomalous cases."""
    detector, test = load(run, "cpu"), Cohort.read(table).part("test")
    assert detector.arguments["further"] == (("photo", 1),)
    assert detector.method.line.weight.item() == pytest.approx(2, abs=0.2)
    found = findings(detector, test)
    healthy, ill = (
        [found[row.scan].score for row in test if row.label == label] for label in (0, 1)
    )
    assert max(healthy) < min(ill)
    for row in test:
        maps = found[row.scan].further["photo"]
        assert found[row.scan].map.shape == row.load().shape == (30, 26)
        assert maps.map.shape == maps.scan.shape == SHAPE
        alone = detector.predict(
            row.paths[0], companions={"further": {"photo": str(row.further["photo"])}}
        )
        assert alone.score == pytest.approx(found[row.scan].score, rel=1e-4, abs=1e-6)


def test_maps_are_written_beside_each_other(table, run, tmp_path):
    detector, row = load(run, "cpu"), Cohort.read(table).part("test")[0]
    finding = findings(detector, [row])[row.scan]
    names = {path.name for path in finding.save(tmp_path, "case")}
    assert {"case_map.tif", "case_photo_map.tif", "case_finding.json"} <= names
    np.testing.assert_allclose(
        read_scan(tmp_path / "case_photo_map.tif").data[0], finding.further["photo"].map, atol=1e-6
    )
    said = json.loads((tmp_path / "case_finding.json").read_text())["further"]["photo"]
    assert said["peak"] == pytest.approx(float(finding.further["photo"].map.max()))


def test_slices_of_a_volume_all_see_the_photograph(tmp_path):
    """Stored once a case, given to every slice; its map is the mean of what the slices say."""
    cohort = Cohort.read(write_cases(tmp_path, dims=3, colour=True))
    detector = Detector("toy_alike", dims=2, **OPTIONS).fit(cohort)
    assert detector.arguments["further"] == (("photo", 3),)
    assert detector.training["samples"]["train"] == 9 * COUNTS["train"]
    found = findings(detector, cohort.part("test"))
    ill = [found[r.scan].score for r in cohort.part("test") if r.label]
    assert min(ill) > max(found[r.scan].score for r in cohort.part("test") if not r.label)
    assert all(f.map.shape == (30, 26, 9) for f in found.values())
    assert all(f.further["photo"].map.shape == SHAPE for f in found.values())


def test_a_further_image_goes_its_own_way_to_the_grid_and_back(rng):
    """Against SciPy's interpolation: proportions are kept, its values are its own."""
    photo = zoom(rng.uniform(0.2, 1, (6, 10)), 8, order=1).astype(np.float32)
    settings = Preprocess(size=40, scaling="minmax", crop="none")
    preparation = Preparation(settings, 2, ("image",), False, further=(("photo", 1),))
    scan = Scan.from_array(rng.uniform(0, 9, (31, 19)).astype(np.float32))
    made = preparation.of(scan, None, {"further": {"photo": Scan.from_array(photo)}})
    prepared = made.further["photo"]
    assert prepared.image.shape == (1, 40, 40) and made.image.shape == (1, 40, 40)
    back = prepared.back(prepared.image)[0]
    wanted = (photo - photo.min()) / np.ptp(photo)
    inside = (slice(3, -3), slice(3, -3))
    assert np.abs(back - wanted)[inside].mean() < 0.02
    strip = prepared.image[0].any(axis=1)
    assert strip.sum() == 24  # 48 x 80 pixels keep their proportions on 40 x 40


# ---------------------------------------------------------------- what lacks


def test_a_missing_image_is_said_in_the_finding_or_refused(table, run):
    cohort = emptied(table, "test00")
    found = findings(load(run, "cpu"), cohort.part("test"))
    assert any("photo of this case is missing" in note for note in found["test00"].notes)
    assert not found["test00"].further
    assert not any("missing" in note for note in found["test01"].notes)
    needed = Detector("toy_alike", prediction="needed", **OPTIONS).fit(cohort)
    refused = findings(needed, cohort.part("test"))["test00"]
    assert isinstance(refused, ScanError) and "photo is missing" in str(refused)


def test_training_cases_without_all_images_are_left_out(table):
    detector = Detector("toy_alike", **OPTIONS).fit(emptied(table, "train00", "train01"))
    assert detector.training["left_out"] == ["train00", "train01"]
    with pytest.raises(CohortError, match=r"learns from the further images.*further_<name>"):
        Detector("toy_alike", **OPTIONS).fit(Cohort.read(table).alone())


def test_other_names_and_channels_are_refused(table, run, tmp_path):
    detector, row = load(run, "cpu"), Cohort.read(table)[0]
    with pytest.raises(ArgumentError, match="no further image 'foto'.*photo"):
        detector.predict(row.load(), companions={"further": {"foto": "x.png"}})
    two = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype(np.float32)
    scan = Scan.from_array(two, channels=("a", "b"))
    with pytest.raises(ScanError, match="the image photo has 2 channels, those of the training"):
        detector.predict(row.load(), companions={"further": {"photo": scan}})
    volume = Scan.from_array(np.random.default_rng(0).uniform(size=(9, 9, 9)))
    with pytest.raises(ScanError, match="is a volume, and this detector works on pictures"):
        detector.predict(row.load(), companions={"further": {"photo": volume}})


def test_a_method_that_sees_one_image_says_so_at_once(table, run, monkeypatch):
    cohort = Cohort.read(table)
    plain = Detector("mean_image", **OPTIONS).fit(cohort.alone())
    monkeypatch.setattr(PreparedSet, "create", lambda *_, **__: pytest.fail("prepared"))
    with pytest.raises(ArgumentError, match=r"'adnas_3d' sees one image.*further_photo.*mmrad"):
        Detector("adnas_3d", preset="tiny", gate=False).fit(cohort)
    found = findings(plain, cohort.part("test"))
    assert all(any("photo wasn't looked at" in n for n in f.notes) for f in found.values())


# ---------------------------------------------------------------- elsewhere


def test_evaluation_has_baselines_of_the_image_alone(table, run, tmp_path):
    results = evaluate(load(run, "cpu"), Cohort.read(table), tmp_path / "evaluation")
    assert results["metrics"]["image_auroc"]["value"] == 1.0
    assert "mean_image" in results["baselines"]


def test_limits_and_export_say_why_not(table, run):
    detector = load(run, "cpu")
    with pytest.raises(ArgumentError, match="looks at photo of a case too"):
        detection_limits(detector, Cohort.read(table))
    with pytest.raises(ArgumentError, match="further images of a case"):
        exported(detector)


def test_a_killed_fit_goes_on(table, run, tmp_path, monkeypatch):
    inner = Trainer._step

    def step(self, index, phase, at, *rest):
        if at == 100:
            raise KeyboardInterrupt
        return inner(self, index, phase, at, *rest)

    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *a: original(self, *a, checkpoint_seconds=0.0)
    )
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            Detector("toy_alike", **OPTIONS).fit(Cohort.read(table), tmp_path / "run")
    again = Detector("toy_alike", **OPTIONS)
    again.fit(Cohort.read(table), tmp_path / "run", resume=True)
    straight = load(run, "cpu")
    assert torch.equal(again.method.line.weight, straight.method.line.weight)
    assert again.scan_threshold.threshold == straight.scan_threshold.threshold


def test_tables_slices_and_preprocessing_keep_the_further_image(tmp_path):
    cohort = Cohort.read(write_cases(tmp_path / "cases", dims=3))
    again = Cohort.read(cohort.write(tmp_path / "other" / "cohort.csv"))
    assert again.further == ("photo",)
    assert again[3].load_further()["photo"].shape == SHAPE
    assert cohort.slices(2, 3)[3].load_further()["photo"].shape == SHAPE
    few = cohort.select([row.scan.startswith("train0") for row in cohort])
    done = prepare_cohort(
        few, Preprocess(steps=({"resample": {"spacing": 2.0}},)), tmp_path / "out", cache=False
    )
    row = Cohort.read(done.table)[0]
    assert row.load().shape != (30, 26, 9) and row.load_further()["photo"].shape == SHAPE
    assert "Further image photo: 25 of 25 cases, 23 x 40." in cohort.summary().notes


def test_by_the_command_line(table, tmp_path, capsys):
    size = ["--preprocess", "scaling=none,crop=none,size=32", "--gate", "no"]
    out = tmp_path / "run"
    assert not main(["fit", "toy_alike", "--cohort", str(table), "--out", str(out), *size])
    folder = table.parent
    one, other = (str(folder / f"test1{i}.npy") for i in (0, 1))
    photos = f"[photo={folder}/test10_photo.npy,'']"
    assert not main(["predict", str(out), one, other, "--further", photos, "--out", str(out / "p")])
    scores = pd.read_csv(out / "p" / "scores.csv", keep_default_na=False).set_index("scan")
    assert "missing" not in scores.loc["test10", "notes"]
    assert "photo of this case is missing" in scores.loc["test11", "notes"]
    assert (out / "p" / "test10_photo_map.tif").is_file()
    assert main(["predict", str(out), one, "--further", "[photo]", "--out", str(out / "q")])
    assert "NAME=FILE" in capsys.readouterr().err


def test_wrappers_average_the_maps_of_further_images(table):
    """Mirrored or not, and by two members: the photograph itself is never mirrored."""
    cohort = Cohort.read(table)
    detector = Detector("toy_alike", wrappers=["ensemble=2", "flips=1"], **OPTIONS).fit(cohort)
    found = findings(detector, cohort.part("test"))
    for row in cohort.part("test"):
        photo, seen = row.load_further()["photo"].data[0], found[row.scan].further["photo"].map
        assert seen.shape == SHAPE
        # The toy's map is a constant and a thousandth of the photograph, whose noise is smoothed.
        like = [
            np.corrcoef(seen.ravel(), p.ravel())[0, 1] for p in (photo, photo[::-1], photo[:, ::-1])
        ]
        assert like[0] > 0.4 > 0.2 > max(like[1:])
