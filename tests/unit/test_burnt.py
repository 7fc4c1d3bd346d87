"""Text burnt into pictures is flagged: by the header, and by the look of the borders."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.support import dicom_files as D

from normscan.io.burnt import text_rows
from normscan.io.dicom import read_dicom

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
BRAINS = Path(__file__).parents[3] / "shared" / "data" / "brain_mri_kaggle"
WRITTEN = {
    "no/44no.jpg", "no/45 no.jpg", "no/N11.jpg", "no/No14.jpg", "yes/Y188.jpg", "yes/Y26.jpg",
    "yes/Y46.jpg", "yes/Y52.jpg", "yes/Y6.jpg", "yes/Y73.jpg", "yes/Y96.jpg",
}  # fmt: skip
"""Pictures with text in them, by eye: window and level, a clinic, tags without values."""


def sector(shape=(240, 320), seed=0):
    """A fan of speckle on black, as ultrasound is, with a scale of ticks."""
    y, x = np.indices(shape)
    fan = (np.hypot(y + 20, x - 160) < 230) & (np.abs(x - 160) < 0.8 * (y + 20)) & (y > 30)
    values = fan * np.clip(np.random.default_rng(seed).rayleigh(45, shape), 0, 255)
    values[40:220:15, 310:318] = 255
    return values.astype("u1")


def written(values, text, at, size):
    image = Image.fromarray(values)
    ImageDraw.Draw(image).text(at, text, fill=230, font=ImageFont.truetype(FONT, size))
    return np.asarray(image)


@pytest.mark.parametrize("size", [11, 14, 20])
@pytest.mark.parametrize("at", [(4, 3), (150, 3), (4, 215)])
def test_a_name_in_a_border_is_seen(size, at):
    assert text_rows(sector()) == 0
    assert text_rows(written(sector(), "DOE^JANE 1951", at, size)) == 1
    colour = np.stack([sector()] * 3, -1)
    colour[..., 1] = written(sector(), "4711-0815", at, size)
    assert text_rows(colour) == 1


def test_what_it_is_said_not_to_see():
    """The page says so: few letters, text in the middle, no picture to speak of."""
    assert text_rows(written(sector(), "R", (4, 3), 20)) == 0
    assert text_rows(written(np.zeros((240, 320), "u1"), "DOE JANE", (120, 115), 14)) == 0
    assert text_rows(np.zeros((32, 32))) == text_rows(np.zeros((100, 100))) == 0


@pytest.mark.skipif(not BRAINS.is_dir(), reason="the pictures aren't here")
def test_real_pictures():
    """A few of those in benchmarks/results/burnt_in_text.md."""
    others = [f"no/{p.name}" for p in sorted((BRAINS / "no").glob("*.jpg"))[:25]]
    for name in sorted(WRITTEN)[:5] + [n for n in others if n not in WRITTEN]:
        picture = np.asarray(Image.open(BRAINS / name).convert("RGB"))
        assert bool(text_rows(picture)) == (name in WRITTEN), name


def test_the_notes_of_a_scan_say_it(tmp_path):
    named = written(sector(), "DOE^JANE 1951", (4, 3), 14)
    for modality, values, flagged in (
        ("US", named, True),
        ("US", sector(), False),
        ("CR", named, False),
    ):
        scan = read_dicom(D.write_image(tmp_path / "x.dcm", values, modality))
        assert any("look" in n and "like text" in n for n in scan.series.notes) == flagged
        assert any("names may stand" in n for n in scan.extra.get("notes", ())) == flagged
    path = D.edit(D.write_image(tmp_path / "x.dcm", sector(), "CR"), BurnedInAnnotation="YES")
    assert "Annotation is YES" in read_dicom(path).extra["notes"][0]
    path = D.edit(D.write_image(tmp_path / "x.dcm", named, "US"), BurnedInAnnotation="NO")
    assert "though Burned In Annotation is NO" in read_dicom(path).extra["notes"][0]
