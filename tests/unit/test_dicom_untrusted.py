"""DICOM that must not be trusted: archives, damaged and hostile files, and what messages may say."""

from __future__ import annotations

import logging
import os
import stat
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid as U
from tests.support import dicom_files as D
from tests.support import dicom_planes as G

from normscan.errors import ScanError
from normscan.io import content_hash, probe, read_scan
from normscan.io.dicom import find_series, read_dicom

PLANES = G.make_planes()
RAMP = PLANES.points[..., 2] * 3 + PLANES.points[..., 0]


# Archives, addresses, hashes


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_folder_and_zip_are_the_same(tmp_path):
    paths = D.write_series(tmp_path / "a", PLANES, RAMP, shuffle=1)
    content = {f"deep/DOE^JOHN/{p.name}": p.read_bytes() for p in paths}
    archive = zipped(tmp_path / "a.zip", {"__MACOSX/._x": b"x", "readme.txt": b"hello", **content})
    np.testing.assert_array_equal(read_scan(archive).data, read_scan(tmp_path / "a").data)
    assert probe(archive) == probe(tmp_path / "a")
    assert content_hash(f"{archive}#series=4") == content_hash(f"{tmp_path / 'a'}#series=4")
    before = content_hash(tmp_path / "a")
    paths[0].rename(tmp_path / "a" / "zzz.renamed")
    assert content_hash(tmp_path / "a") == before
    D.edit(paths[1], InstanceNumber="99")
    assert content_hash(tmp_path / "a") != before


def test_unsafe_archives(tmp_path):
    [path] = D.write_series(tmp_path / "a", G.make_planes(count=1), RAMP[:1])
    content = path.read_bytes()
    for name in ("../DOE^JOHN", "/DOE^JOHN", "a/../../DOE^JOHN", "C:/DOE^JOHN", "..\\DOE^JOHN"):
        archive = zipped(tmp_path / "bad.zip", {name: content})
        with pytest.raises(ScanError, match="points outside") as error:
            read_scan(archive)
        assert "DOE" not in str(error.value) and str(archive) in str(error.value)
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ScanError, match="is a link"):
        read_scan(tmp_path / "link.zip")
    zipped(tmp_path / "none.zip", {"a.txt": b"nothing"})
    with pytest.raises(ScanError, match="holds no DICOM"):
        read_scan(tmp_path / "none.zip")
    many = zipped(tmp_path / "many.zip", {f"{n}": b"" for n in range(20_001)})
    with pytest.raises(ScanError, match="20001 files in it, the limit is 20000"):
        read_scan(many)
    whole = zipped(tmp_path / "cut.zip", {"a.dcm": content}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match=r"cut\.zip: this zip archive is damaged"):
        read_scan(tmp_path / "cut.zip")


def test_links_and_pipes_in_a_folder(tmp_path):
    D.write_series(tmp_path / "a", PLANES, RAMP)
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "gone").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "a" / "pipe")
    scan = read_scan(tmp_path / "a")
    assert scan.shape == (17, 14, 9) and not scan.series.notes


def test_other_formats_have_no_series_and_frames(tmp_path):
    np.save(tmp_path / "a.npy", np.eye(4))
    with pytest.raises(ScanError, match="is no DICOM"):
        read_scan(f"{tmp_path / 'a.npy'}#frame=0")


# Hostile files


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def part10(syntax: str, body: bytes) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\0" * 128 + b"DICM" + element(2, 0x10, b"UI", uid) + body


NESTED = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 2**32 - 1) + struct.pack(
    "<HHI", 0xFFFE, 0xE000, 2**32 - 1
)


EMPTY = struct.pack("<HHI", 0xFFFE, 0xE000, 0)
BOMB = zlib.compress(b"\0" * 9_000_000)[2:]
ENDLESS = struct.pack("<HH2sHI", 8, 0x2112, b"OB", 0, 2**32 - 256)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (part10(U.ExplicitVRLittleEndian, NESTED * 20_000), "nests its sequences too deeply"),
        (part10(U.ExplicitVRLittleEndian, NESTED[:12] + EMPTY * 500_001), "too many elements"),
        (part10(U.ExplicitVRLittleEndian, b"\0" * 2_000_000), "too many elements"),
        (part10(U.DeflatedExplicitVRLittleEndian, b"rubbish, not deflated"), "damaged"),
        (part10(U.DeflatedExplicitVRLittleEndian, BOMB), "too many elements"),
        (part10(U.ExplicitVRLittleEndian, ENDLESS), "holds no pixels"),
        (b"\0" * 128 + b"DICM", "holds no pixels"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 300, "damaged|holds no pixels"),
    ],
)  # fmt: skip
def test_hostile_files(tmp_path, content, says):
    path = tmp_path / "hostile.dcm"
    path.write_bytes(content)
    for read in (read_scan, probe):
        with pytest.raises(ScanError, match=says) as error:
            read(path)
        assert str(path) in str(error.value)


def test_a_decoder_that_ends_its_process_ends_nothing_else(tmp_path, rng):
    from normscan.io.dicom import guarded

    stored = rng.integers(0, 255, (64, 64)).astype("u1")
    path = D.write_image(tmp_path / "a.dcm", stored, "DX", syntax=U.JPEGLosslessSV1)
    np.testing.assert_array_equal(read_dicom(path).data[0], stored)
    first = guarded._process()
    first.stdin.write(struct.pack("<QQ", 0, 0))  # an empty question ends it
    first.stdin.flush()
    first.wait(timeout=30)
    np.testing.assert_array_equal(read_dicom(path).data[0], stored)
    assert guarded._process().pid != first.pid


@pytest.mark.parametrize("syntax", [*D.LOSSLESS, U.JPEGBaseline8Bit])
def test_contradictions_between_header_and_stream(tmp_path, rng, syntax, monkeypatch):
    monkeypatch.setenv("NORMSCAN_MEMORY_GIB", "64")  # on a small machine that limit comes first
    stored = rng.integers(0, 255, (64, 64)).astype("u1")
    path = D.write_image(tmp_path / "a.dcm", stored, "DX", syntax=syntax)
    good = path.read_bytes()
    D.edit(path, Rows=128, Columns=128)
    says = "contradicts itself.*64 x 64" if syntax != U.RLELossless else "damaged"
    with pytest.raises(ScanError, match=says):
        read_dicom(path)
    D.edit(path, Rows=60000, Columns=30000)
    with pytest.raises(ScanError, match="more than the file can hold"):
        read_dicom(path)
    path.write_bytes(good[: len(good) * 2 // 3])
    with pytest.raises(ScanError, match=r"a\.dcm"):
        read_dicom(path)


def test_missing_plugins_and_unknown_syntaxes_are_named(tmp_path, rng, monkeypatch):
    stored = rng.integers(0, 255, (64, 64)).astype("u1")
    path = D.write_image(tmp_path / "a.dcm", stored, "DX", syntax=U.JPEGLSLossless)
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "is_available", property(lambda self: False))
    with pytest.raises(ScanError, match="JPEG-LS Lossless.*pip install pyjpegls"):
        read_dicom(path)
    data = pydicom.dcmread(path)
    for uid, says in ((U.MPEG2MPML, "MPEG2"), ("1.2.3.4.5", r"1\.2\.3\.4\.5")):
        data.file_meta.TransferSyntaxUID = uid
        data.save_as(path)
        with pytest.raises(ScanError, match=f"{says}.* can't be decoded here"):
            read_dicom(path)


def test_no_identity_in_messages_warnings_and_logs(tmp_path, rng, caplog, recwarn):
    """Illegal values make pydicom talk; none of them may come out."""
    caplog.set_level(logging.DEBUG)
    secret = "Sekret^Person " * 8
    stored = rng.integers(0, 255, (13, 21)).astype("u1")
    names = {"PatientName": secret, "PatientID": "Sekret" * 20, "PatientBirthDate": "Sekret",
             "StudyDate": "Sekret", "SeriesDescription": secret, "PatientAge": "Sekret"}  # fmt: skip
    messages = []
    changes = [{}, {"Rows": 0}, {"BitsStored": 99}, {"PhotometricInterpretation": "Sekret"},
               {"SeriesNumber": "777777"}, {"Modality": "Sekret^"}, {"WindowCenter": "777777"},
               {"PixelRepresentation": 7}, {"RescaleSlope": "777777"}, {"ImageType": "Sekret"},
               {"NumberOfFrames": "777777"}, {"PixelSpacing": ["777777", "1"]}]  # fmt: skip
    for n, change in enumerate(changes):
        folder = tmp_path / str(n)
        with pydicom.config.disable_value_validation(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = D.write_image(folder / "a.dcm", stored, "DX")
            D.edit(path, **names, **change)
            D.edit(D.write_series(folder, G.make_planes(count=1), RAMP[:1])[0], **names, **change)
        for (
            file
        ) in folder.iterdir():  # numbers that are none, as pydicom would refuse to write them
            file.write_bytes(file.read_bytes().replace(b"777777", b"Sekret"))
        caplog.clear()
        for place in (path, folder):
            try:
                scan = read_scan(place)
                messages.append(repr(scan) + str(scan.series.notes))
                assert len(scan.series.headers) == 1
            except ScanError as error:
                messages.append(str(error))
        messages += [str(s) + repr(s) for s in find_series(folder)]
        messages += [record.getMessage() for record in caplog.records]
    messages += [str(w.message) for w in recwarn]
    assert len(messages) > 20
    assert not [m for m in messages if "sekret" in m.lower()]
