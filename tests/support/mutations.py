"""Files that somebody may hand us, each changed a little at random: bytes, numbers, fields, packing."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import tempfile
import tomllib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom import uid

import normscan as ns
from normscan.benchmark.protocol import parse
from normscan.cohort import Cohort
from normscan.errors import NormscanError
from normscan.io import probe, read_mask, read_scan
from normscan.io.onnx import initializers
from normscan.node.config import Config
from normscan.training.folder import claim_folder
from tests.support import dicom_files as D
from tests.support import dicom_planes as G
from tests.support.changes import WAYS, of_bytes

LONGEST = 2500  # letters of a message


@dataclass(frozen=True)
class Kind:
    """Files of one kind.

    Attributes:
        seeds: name and content of good ones.
        read: what reads one.
        share: of all mutations.
    """

    seeds: list[tuple[str, bytes]]
    read: Callable[[Path], object]
    share: float


def mutated(kind: Kind, seed: int) -> tuple[str, bytes]:
    """Return name and content of one changed file, the same each time for a seed."""
    rng = random.Random(seed)
    name, data = rng.choice(kind.seeds)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            data = rng.choice(WAYS.get(name.rpartition(".")[2], (of_bytes,)))(data, rng)
        except (ValueError, IndexError, struct.error, OSError, EOFError, RecursionError, zlib.error,
                zipfile.BadZipFile, NotImplementedError):  # fmt: skip
            data = of_bytes(data, rng)  # an earlier change left nothing to unpack
    return name, data


def outcome(kind: Kind, place: Path, seed: int) -> tuple[str, str]:
    """Read one changed file in an empty folder.

    Returns:
        What came of it (``read``, ``one line``, ``long``: more than that, ``memory``) and, of the last
        two, more.
    """
    name, data = mutated(kind, seed)
    (place / name).write_bytes(data)
    try:
        kind.read(place / name)
    except NormscanError as error:
        said = str(error)
        if len(said.splitlines()) != 1 or len(said) > LONGEST:
            return "long", f"{len(said)} letters in {len(said.splitlines())} lines: {said[:150]!r}"
        return "one line", ""
    except MemoryError as error:
        return "memory", repr(error)
    return "read", ""


# ---------------------------------------------------------------- the good files


def kinds(home: Path) -> dict[str, Kind]:
    """Return all kinds; their good files are made in a folder."""
    return {
        "pictures": Kind(pictures(home), read_image, 0.25),
        "volumes": Kind(volumes(home), read_image, 0.2),
        "dicom": Kind(dicom(home), read_scan, 0.15),
        "zips": Kind(zips(home), read_scan, 0.08),
        "tables": Kind(tables(), read_table, 0.1),
        "node": Kind(nodes(), Config.read, 0.03),
        "protocols": Kind(protocols(), read_protocol, 0.03),
        "onnx": Kind(onnx(), initializers, 0.02),
        **detectors(home),
    }


def read_image(path: Path) -> None:
    """Read a file as a scan and as the mask of what it was read as."""
    probe(path)
    read_mask(path, read_scan(path))


def read_table(path: Path) -> None:
    """Read a cohort; some of its files are there."""
    for i in range(10):
        (path.parent / f"{i}.png").touch()
    Cohort.read(path)


def pictures(home: Path) -> list[tuple[str, bytes]]:
    """PNG, JPEG, BMP, WebP, JPEG 2000 and TIFF in several forms."""
    pixels = (np.arange(24 * 20).reshape(24, 20) // 2).astype("u1")
    colour = np.stack([pixels, pixels[::-1], pixels.T.reshape(24, 20)], -1)
    made = []

    def saved(name: str, image: Image.Image, **more: Any) -> None:
        image.save(home / name, **more)
        made.append((name, (home / name).read_bytes()))

    for name in ("a.png", "a.jpg", "a.bmp", "a.webp", "a.jp2"):
        saved(name, Image.fromarray(pixels))
        saved(name, Image.fromarray(colour))
    saved("a.png", Image.fromarray(pixels.astype("u2") * 200))
    saved("a.png", Image.fromarray(pixels).convert("1"))
    saved("a.png", Image.fromarray(colour).quantize(16))
    for more in ({}, {"compression": "zlib"}, {"compression": "lzw"}, {"tile": (16, 16)}, {"bigtiff": True},
                 {"byteorder": ">"}, {"predictor": True, "compression": "zlib"}):  # fmt: skip
        for values in (pixels, colour, np.stack([pixels, pixels // 2])):
            photometric = "rgb" if values is colour else "minisblack"
            tifffile.imwrite(home / "a.tif", values, photometric=photometric, metadata=None, **more)
            made.append(("a.tif", (home / "a.tif").read_bytes()))
    return made


def volumes(home: Path) -> list[tuple[str, bytes]]:
    """NIfTI, NRRD, MetaImage, MGH and arrays."""
    values, affine = np.arange(3 * 4 * 5).reshape(3, 4, 5), np.diag([1, 2, 3, 1.0])
    made = []
    for kind in ("u1", "i2", "f4"):
        for name in ("a.nii", "a.nii.gz"):
            nib.save(nib.Nifti1Image(values.astype(kind), affine), home / name)
            made.append((name, (home / name).read_bytes()))
        np.save(home / "a.npy", values.astype(kind))
        np.savez_compressed(home / "a.npz", image=values.astype(kind), spacing=np.ones(3))
        image = sitk.GetImageFromArray(values.astype(kind))
        for name, packed in (
            ("a.nrrd", False),
            ("a.nrrd", True),
            ("a.mha", False),
            ("a.mha", True),
        ):
            sitk.WriteImage(image, str(home / name), packed)
            made.append((name, (home / name).read_bytes()))
        made += [(name, (home / name).read_bytes()) for name in ("a.npy", "a.npz")]
    nib.save(nib.MGHImage(values.astype("f4"), affine), home / "a.mgz")
    made.append(("a.mgz", (home / "a.mgz").read_bytes()))
    nib.save(nib.Nifti2Image(values.astype("i2"), affine), home / "a.nii")
    return [*made, ("a.nii", (home / "a.nii").read_bytes())]


def stack() -> tuple[Any, np.ndarray]:
    """Planes of a small series, and its values."""
    values = np.random.default_rng(0).integers(0, 900, (3, 8, 8)).astype(float)
    return G.make_planes(count=3, shape=(8, 8)), values


def dicom(home: Path) -> list[tuple[str, bytes]]:
    """Single files: native and packed pixels, several frames, colour."""
    planes, values = (
        G.make_planes(count=3, shape=(8, 8)),
        np.random.default_rng(0).integers(0, 900, (3, 8, 8)),
    )
    paths = [
        D.write_series(home / s, planes, values.astype(float), "CT", syntax=s)[0] for s in D.NATIVE
    ]
    paths += D.write_enhanced(home / "e", planes, values.astype(float), "MR")
    grey = (np.arange(32)[:, None] * 3 + np.arange(32)).astype("u1")
    for n, syntax in enumerate((*D.LOSSLESS, uid.JPEGBaseline8Bit)):
        paths.append(D.write_image(home / f"{n}.dcm", grey, "DX", syntax=syntax))
    paths.append(D.write_image(home / "p.dcm", grey, "DX", "PALETTE COLOR"))
    paths.append(D.write_image(home / "c.dcm", np.stack([grey] * 3, -1), "US", "YBR_FULL"))
    return [("a.dcm", path.read_bytes()) for path in paths]


def zips(home: Path) -> list[tuple[str, bytes]]:
    """Archives of a series."""
    planes, values = (
        G.make_planes(count=3, shape=(8, 8)),
        np.random.default_rng(0).integers(0, 900, (3, 8, 8)),
    )
    paths = D.write_series(home / "zipped", planes, values.astype(float), "MR")
    made = []
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", method) as file:
            for path in paths:
                file.write(path, path.name)
        made.append(("a.zip", packed.getvalue()))
    return made


def tables() -> list[tuple[str, bytes]]:
    """Cohorts, as comma and tab separated text."""
    head = "scan,subject,path,label,mask,foreground,split,site,age"
    rows = [
        f"s{i},p{i},{i}.png,{i % 2},,,{('train', 'test')[i % 2]},one,{40 + i}" for i in range(10)
    ]
    text = "\n".join([head, *rows]) + "\n"
    few = "path,label\n" + "\n".join(f'"{i}.png",{i % 2}' for i in range(8))
    return [("c.csv", text.encode()), ("c.tsv", text.replace(",", "\t").encode()), ("c.csv", few.encode()),
            ("c.csv", b"\xef\xbb\xbf" + text.replace(",", ";").encode())]  # fmt: skip


NODE = """folder = "data"
retention = "30d"
quota_gb = 5.0
device = "cpu"
[scanners]
0123abcd = "MR1"
[dicom]
port = 11112
ae_title = "NORMSCAN"
callers = ["PACS", "MR1"]
timeout = "60s"
[web]
token_file = "token"
largest_mb = 20.5
[drift]
alpha = 0.05
window = 100
[[sources]]
name = "orthanc"
kind = "orthanc"
url = "http://10.0.0.5:8042"
every = "2min"
days = 2
[[destinations]]
host = "10.0.0.5"
port = 104
ae_title = "PACS"
[[destinations]]
url = "http://10.0.0.5:8042/dicom-web"
[[rules]]
name = "head FLAIR"
detector = "run"
modality = ["MR"]
description = "flair|dark.*fluid"
body_part = ["HEAD", "BRAIN"]
"""


def nodes() -> list[tuple[str, bytes]]:
    """What a node is told."""
    return [("node.toml", NODE.encode())]


def protocols() -> list[tuple[str, bytes]]:
    """Three of the shipped ones."""
    folder = Path(ns.__file__).parent / "benchmark" / "protocols"
    return [
        (f"{name}.toml", (folder / f"{name}.toml").read_bytes())
        for name in ("bmad", "local", "phantom")
    ]


def read_protocol(path: Path) -> None:
    """Check one as the shipped ones are."""
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NormscanError(
            " ".join(str(error).split())[:200]
        ) from error  # nobody else's file comes so far
    parse(path.stem, {path.stem: raw}).text()


def onnx() -> list[tuple[str, bytes]]:
    """A graph as torch and normscan write it: a protocol buffer of two constants."""
    import onnx

    made = [onnx.numpy_helper.from_array(np.ones((2, 3), "f4") * i, f"w{i}") for i in range(2)]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=made)
    return [("a.onnx", onnx.helper.make_model(graph).SerializeToString())]


def detectors(home: Path) -> dict[str, Kind]:
    """Folders of two small detectors: one of their files is changed, the weights' hash is right again."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[-1:1:32j, -1:1:32j]
    lines = ["path,label,split"]
    for i in range(16):
        image = 0.5 * (x**2 + y**2 < rng.uniform(0.4, 0.7)) + rng.normal(0, 0.02, x.shape)
        np.save(home / f"d{i}.npy", image.astype(np.float32))
        lines.append(f"d{i}.npy,0,{'train' if i < 10 else 'val'}")
    (home / "d.csv").write_text("\n".join(lines))
    options = {"preset": "tiny", "size": 32, "fpr": 0.2, "calibration": "split"}
    runs = [home / "run0", home / "run1"]
    ns.create("dae", **options, steps=2).fit(Cohort.read(home / "d.csv"), runs[0])
    ns.create("mean_image", **options).fit(Cohort.read(home / "d.csv"), runs[1])
    picture = read_scan(home / "d0.npy")

    def load(path: Path) -> None:
        source = next(run for run in runs if run.name == path.name.partition("_")[0])
        name = path.name.partition("_")[2]
        for other in ("detector.json", "model.safetensors", "division.csv"):
            content = path if other == name else source / other
            (path.parent / other).write_bytes(content.read_bytes())
        if name == "model.safetensors":
            about = json.loads((path.parent / "detector.json").read_text())
            about["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            (path.parent / "detector.json").write_text(json.dumps(about))
        ns.load(path.parent, "cpu").predict(picture)

    def resume(path: Path) -> None:
        source = next(run for run in runs if run.name == path.name.partition("_")[0])
        path.rename(path.with_name("config.json"))
        claim_folder(path.parent, json.loads((source / "config.json").read_text()), resume=True)

    def files(name: str) -> list[tuple[str, bytes]]:
        return [(f"{run.name}_{name}", (run / name).read_bytes()) for run in runs]

    return {
        "detector.json": Kind(files("detector.json"), load, 0.06),
        "safetensors": Kind(files("model.safetensors"), load, 0.04),
        "division.csv": Kind(files("division.csv"), load, 0.02),
        "config.json": Kind(files("config.json"), resume, 0.02),
    }


def seeds_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the good files that goes when it is closed."""
    return tempfile.TemporaryDirectory(prefix="normscan-mutations-")
