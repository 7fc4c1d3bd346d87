"""Small files that declare much: refused before the memory is taken, whoever declares it."""

from __future__ import annotations

import resource
import zipfile

import numpy as np
import pytest
from PIL import Image
from pydicom import uid
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan.errors import ScanError
from normscan.io import memory, probe, read_scan
from normscan.io.dicom import find_series
from normscan.io.dicom.source import find_sources
from normscan.io.memory import SETTING, memory_limit


@pytest.fixture
def little(monkeypatch):
    """A sixteenth of a GiB."""
    monkeypatch.setenv(SETTING, str(1 / 16))


@pytest.fixture
def planes(tmp_path):
    values = np.random.default_rng(0).integers(0, 900, (3, 8, 8)).astype(float)
    return D.write_series(tmp_path / "series", G.make_planes(count=3, shape=(8, 8)), values, "CT")


def test_the_limit_is_that_of_the_user_or_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv(SETTING, "2.5")
    assert memory_limit() == int(2.5 * 2**30)
    for text in ("", "nan", "-1", "much", "0"):
        monkeypatch.setenv(SETTING, text)
        assert memory_limit() > 2**20
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    (tmp_path / "memory.stat").write_text("anon 2500\ninactive_file 400\n")
    assert memory._container(str(tmp_path)) == 1400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(str(tmp_path)) is None
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**44, 2**44))
    assert 0 < memory._process() < 2**44


def test_a_picture_of_one_bit_a_pixel(tmp_path, little):
    Image.new("1", (8000, 8000)).save(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size < 20_000
    with pytest.raises(ScanError, match=rf"a\.png: takes 0\.3 GiB .* {SETTING}"):
        read_scan(tmp_path / "a.png")


def test_numbers_that_grow_as_they_are_read(tmp_path, little):
    np.save(tmp_path / "a.npy", np.zeros((5000, 5000), np.uint8))
    with pytest.raises(ScanError, match="takes 0.1 GiB"):
        read_scan(tmp_path / "a.npy")


def test_a_member_of_an_archive_is_unpacked_as_far_as_it_is_read(tmp_path, planes, little):
    """128 MiB of zeros behind a picture: they cost neither memory nor a reading of the header."""
    path = tmp_path / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
        packed.open("a", "w") as member,
    ):
        member.write(planes[0].read_bytes())
        for _ in range(128):
            member.write(bytes(2**20))
    assert probe(tmp_path / "a.zip").shape == (8, 8)
    (source,) = find_sources(tmp_path / "a.zip")
    with source.open() as file:
        whole = planes[0].read_bytes()
        assert file.read(10) == whole[:10] and file.seek(5) == 5 and file.read(20) == whole[5:25]
        assert len(file.file.kept) == 25 and file.seek(0, 2) == source.size
        assert file.file.seek(-4, 2) == source.size - 4
        with pytest.raises(ScanError, match=r"a\.zip: takes"):
            file.read(4)
    with pytest.raises(ScanError, match="too many elements"):
        read_scan(tmp_path / "a.zip")


def test_a_deflated_file_that_unpacks_to_more(tmp_path, little):
    image = np.zeros((6000, 6000), np.uint16)
    path = D.write_image(tmp_path / "a.dcm", image, "DX", syntax=uid.DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 2**20
    with pytest.raises(ScanError, match="unpacks to more than"):
        read_scan(path)


def test_a_plane_that_needs_more(tmp_path, little):
    path = D.write_image(tmp_path / "a.dcm", np.zeros((3000, 3000), np.uint16), "DX")
    with pytest.raises(ScanError, match="takes 0.1 GiB"):
        read_scan(path)


def test_a_member_of_another_size_than_it_says(tmp_path, planes):
    """Never a volume with a plane less without a word."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for path in planes:
            packed.write(path, path.name)
    raw = bytearray((tmp_path / "a.zip").read_bytes())
    size = raw.find(b"PK\1\2") + 24
    raw[size : size + 4] = (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(raw)
    (series,) = find_series(tmp_path / "a.zip")
    assert series.images == 2 and "1 files couldn't be read" in series.notes[0]
    assert read_scan(tmp_path / "a.zip").series.notes[0] == series.notes[0]
