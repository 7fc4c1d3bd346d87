"""Whole-slide images as tiles of tissue, against tifffile's pixels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from normscan.cli.main import main
from normscan.cohort import Cohort
from normscan.errors import CohortError, ScanError
from normscan.io.slides import open_slide, tissue

openslide = pytest.importorskip("openslide")

MPP = 0.25
TISSUE = (slice(512, 1280), slice(768, 2048))  # rows, columns


def write_slide(path, rng, levels=(1, 4), mpp: float | None = MPP, stained=True) -> np.ndarray:
    """White glass with a stained rectangle, as a tiled pyramid."""
    pixels = np.full((1536, 2560, 3), 243, np.uint8)
    if stained:
        grain = rng.integers(-20, 20, (768, 1280, 3))
        pixels[TISSUE] = np.clip(np.array([190, 110, 170]) + grain, 0, 255)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib"}
    if mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in levels:
            coarse = np.asarray(Image.fromarray(pixels).reduce(level)) if level > 1 else pixels
            file.write(coarse, subfiletype=int(level > 1), **options)
    return pixels


@pytest.mark.parametrize("levels", [(1, 4), (1,)])
def test_tiles_at_the_finest_level(tmp_path, rng, levels):
    pixels = write_slide(tmp_path / "a.tif", rng, levels)
    assert main(["tiles", str(tmp_path / "a.tif"), "--out", str(tmp_path / "out")]) == 0
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    # 3 rows of 5 tiles are tissue, and no other.
    assert sorted(zip(table["y"], table["x"], strict=True)) == [
        (y, x) for y in (512, 768, 1024) for x in (768, 1024, 1280, 1536, 1792)
    ]
    assert set(table["slide"]) == set(table["subject"]) == {"a"} and table["label"].isna().all()
    assert set(table["mpp"]) == {MPP} and set(table["side"]) == {256}
    for row in table.itertuples():
        cut = np.asarray(Image.open(tmp_path / "out" / row.path))
        np.testing.assert_array_equal(cut, pixels[row.y : row.y + 256, row.x : row.x + 256])
    mask = np.asarray(Image.open(tmp_path / "out" / "tissue" / "a.png")) > 0
    step = 2
    expected = np.zeros((768, 1280), bool)
    expected[tuple(slice(s.start // step, s.stop // step) for s in TISSUE)] = True
    assert np.mean(mask != expected) < 0.01
    assert len(Cohort.read(tmp_path / "out")) == 15


def test_coarser_pixels_are_averages(tmp_path, rng):
    pixels = write_slide(tmp_path / "a.tif", rng)
    command = ["tiles", str(tmp_path / "a.tif"), "--out", str(tmp_path / "out"), "--mpp", "0.5"]
    assert main([*command, "--size", "128", "--most", "4"]) == 0
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    assert len(table) == 4 and set(table["mpp"]) == {0.5} and set(table["side"]) == {256}
    for row in table.itertuples():
        part = pixels[row.y : row.y + 256, row.x : row.x + 256].astype(float)
        mean = part.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
        cut = np.asarray(Image.open(tmp_path / "out" / row.path))
        assert np.abs(cut - mean).max() <= 1
    # The same seed draws the same tiles.
    again = [*command[:3], str(tmp_path / "again"), *command[4:], "--size", "128", "--most", "4"]
    assert main(again) == 0
    assert table.equals(pd.read_csv(tmp_path / "again" / "cohort.csv"))


def test_a_table_of_slides(tmp_path, rng, capsys):
    for name in ("h1", "h2", "sick"):
        write_slide(tmp_path / f"{name}.tif", rng)
    write_slide(tmp_path / "blank.tif", rng, stained=False)
    rows = [("h1", 0, "p1"), ("h2", 0, "p2"), ("sick", 1, "p3"), ("blank", 0, "p4")]
    pd.DataFrame(
        [{"path": f"{n}.tif", "label": label, "subject": s, "stain": "HE"} for n, label, s in rows]
    ).to_csv(tmp_path / "slides.csv", index=False)
    assert main(["tiles", str(tmp_path / "slides.csv"), "--out", str(tmp_path / "out")]) == 0
    assert "blank.tif: no tile" in capsys.readouterr().err
    table = pd.read_csv(tmp_path / "out" / "cohort.csv")
    labels = {s: set(part["label"].fillna(-1)) for s, part in table.groupby("subject")}
    assert labels == {"p1": {0}, "p2": {0}, "p3": {-1}}
    assert set(table["stain"]) == {"HE"}
    cohort = Cohort.read(tmp_path / "out")
    assert len({row.scan for row in cohort}) == len(cohort) == 45
    assert cohort[0].load().channels == ("red", "green", "blue")


def test_what_is_refused(tmp_path, rng, capsys):
    Image.fromarray(np.zeros((99, 99, 3), np.uint8)).save(tmp_path / "flat.tif")
    write_slide(tmp_path / "none.tif", rng, mpp=None)
    for arguments, says in (
        (["flat.tif"], "no slide that OpenSlide knows"),
        (["none.tif", "--mpp", "0.5"], "doesn't say how large its pixels are"),
        (["gone.svs"], "no such slide"),
        (["none.tif", "--share", "2"], "a share of 0 to 1"),
    ):
        command = [
            "tiles",
            str(tmp_path / arguments[0]),
            "--out",
            str(tmp_path / "o"),
            *arguments[1:],
        ]
        assert main(command) == 2
        assert says in capsys.readouterr().err
    write_slide(tmp_path / "fine.tif", rng)
    assert (
        main(["tiles", str(tmp_path / "fine.tif"), "--out", str(tmp_path / "o"), "--mpp", "0.1"])
        == 2
    )
    assert "coarser than the 0.1" in capsys.readouterr().err
    data = (tmp_path / "fine.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(data[: len(data) // 3])
    with pytest.raises(ScanError), open_slide(tmp_path / "cut.tif") as slide:
        slide.overview()
    with pytest.raises(CohortError, match="holds no slides"):
        from normscan.cohort.tiles import cut_tiles

        (tmp_path / "empty").mkdir()
        cut_tiles(tmp_path / "empty", tmp_path / "o")


def test_tissue_is_what_is_stained(rng):
    picture = np.full((60, 80, 3), 240, np.uint8)
    assert not tissue(picture).any()
    picture[:10] = 5  # a black border
    picture[20:40, 20:60] = (200, 120, 180)
    found = tissue(picture)
    expected = np.zeros((60, 80), bool)
    expected[20:40, 20:60] = True
    assert np.mean(found != expected) < 0.05 and not found[:10].any()
