"""Malformed NIfTI and NumPy files."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import nibabel as nib
import numpy as np

from tests.support.malformed import SECRET, Case, Odd, written

Content = bytes | Callable[[], bytes]
BAD = "is damaged, truncated or of an unknown variant"
AFFINE = "affine in the header is singular"
EXTENSION = struct.pack("<ii", 2**31 - 16, 4) + b"SECRET\0\0" + np.arange(60, dtype="<i2").tobytes()
DAMAGED = "a damaged gzip file"
VOLUME = np.arange(3 * 4 * 5, dtype="<i2").reshape(3, 4, 5)
PIXELS = np.arange(12 * 10, dtype="u1").reshape(12, 10) * 2

# ---------------------------------------------------------------- NIfTI


def nifti(pixels: bytes | None = None, order: str = "<", two: bool = False, **fields: Any) -> bytes:
    """A file whose header has some fields changed, whatever they then mean."""
    kind: Any = nib.Nifti2Header if two else nib.Nifti1Header
    header = kind(endianness=order)
    header.set_data_shape(VOLUME.shape)
    header.set_data_dtype("i2")
    header["vox_offset"] = 544 if two else 352
    header["pixdim"] = [1, 1, 2, 3, 1, 0, 0, 0]
    header["sform_code"], header["descrip"] = 1, SECRET.encode()
    for n, axis in enumerate("xyz"):
        header[f"srow_{axis}"] = np.eye(4)[n] * (n + 1)
    header["magic"] = b"n+2\0\r\n\x1a\n" if two else b"n+1\0"
    block = bytearray(header.binaryblock)
    for name, value in fields.items():
        kind_, at = header.template_dtype.fields[name][:2]
        raw = np.array(value, kind_.base.newbyteorder(order)).tobytes()
        block[at : at + len(raw)] = raw
    return bytes(block) + b"\0\0\0\0" + (VOLUME.tobytes() if pixels is None else pixels)


def niftis() -> Iterator[tuple[str, bytes, str]]:
    for name, dim in {
        "no axes": [0, 3, 4, 5, 1, 1, 1, 1], "one axis": [1, 60, 1, 1, 1, 1, 1, 1],
        "8 axes": [8, 3, 4, 5, 1, 1, 1, 1], "negative axes": [-3, 3, 4, 5, 1, 1, 1, 1],
        "an axis of 0": [3, 3, 0, 5, 1, 1, 1, 1], "an axis of -4": [3, 3, -4, 5, 1, 1, 1, 1],
        "two axes negative": [3, -3, -4, 5, 1, 1, 1, 1],
        "32767 in every direction": [7] + [32767] * 7, "32767 cubed": [3] + [32767] * 7,
        "one plane too many": [3, 3, 4, 6, 1, 1, 1, 1], "a series": [4, 3, 4, 1, 5, 1, 1, 1],
        "five axes": [5, 3, 2, 2, 1, 5, 1, 1], "a vector of seven": [7, 2, 2, 3, 1, 1, 1, 5],
    }.items():  # fmt: skip
        yield (
            f"dim {name}",
            nifti(dim=dim),
            "declares|a series of 5 volumes|is no image|Expected 144 bytes",
        )
    for code, name in {0: "unknown", 1: "bits", 3: "no code", 32: "complex", 128: "RGB cut",
                       1536: "float128 cut", 1792: "complex128", 2304: "RGBA cut", -1: "-1",
                       64: "float64 cut", 1024: "int64 cut"}.items():  # fmt: skip
        yield (
            f"datatype {name}",
            nifti(datatype=code),
            "names the data type|complex values|this NIfTI is damaged",
        )
    for offset in (np.nan, np.inf, -352, 1e30, 2**28, 400, 353.5):
        yield (
            f"vox_offset {offset}",
            nifti(vox_offset=offset),
            "puts the data at byte|Expected 120 bytes",
        )
    for slope, inter in ((1e38, 0), (1, np.inf), (1e38, 1e38), (2, -np.inf)):
        yield (
            f"scaling {slope} {inter}",
            nifti(scl_slope=slope, scl_inter=inter),
            "are NaN or infinite|invalid intercept",
        )
    for name, rows in {
        "zeros": np.zeros((3, 4)), "nan": np.full((3, 4), np.nan),
        "one inf": np.diag([1, np.inf, 1, 1])[:3], "one row of zeros": np.diag([1, 0, 1, 1])[:3],
        "two axes alike": [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]],
        "offset nan": [[1, 0, 0, np.nan], [0, 1, 0, 0], [0, 0, 1, 0]], "tiny": np.eye(4)[:3] * 1e-20,
        "huge": np.eye(4)[:3] * 3e38,
    }.items():  # fmt: skip
        fields = dict(zip(("srow_x", "srow_y", "srow_z"), rows, strict=True))
        yield f"sform {name}", nifti(**fields), AFFINE
    qform = {"qform_code": 1, "sform_code": 0}
    for name, fields in {
        "quaternion too long": {"quatern_b": 3.0}, "quaternion nan": {"quatern_c": np.nan},
        "offset inf": {"qoffset_x": np.inf}, "steps 0": {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0]},
        "steps nan": {"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]},
        "handedness nan": {"pixdim": [np.nan, 1, 1, 1, 0, 0, 0, 0]},
        "steps inf": {"pixdim": [1, np.inf, 1, 1, 0, 0, 0, 0]},
    }.items():  # fmt: skip
        yield f"qform {name}", nifti(**qform, **fields), f"{AFFINE}|NIfTI header is damaged"
    plain = {"qform_code": 0, "sform_code": 0}
    yield "no form, steps 0", nifti(**plain, pixdim=[1, 0, 1, 1, 0, 0, 0, 0]), AFFINE
    yield "no form, steps nan", nifti(**plain, pixdim=[1, np.nan, 1, 1, 0, 0, 0, 0]), AFFINE
    yield "header alone", nifti()[:348], "Expected 120 bytes, got 0"
    yield "header cut", nifti()[:347], "unknown kind"
    yield "cut by a byte", nifti()[:-1], "Expected 120 bytes, got 119"
    yield "magic of a pair", nifti(magic=b"ni1\0"), "a NIfTI header"
    yield "no magic", nifti(magic=b"\0\0\0\0"), "an Analyze header"
    yield "other magic", nifti(magic=b"n+3\0"), "an Analyze header"
    yield "NIfTI-2 cut", nifti(two=True)[:500], "this NIfTI is damaged"
    yield (
        "NIfTI-2 of 2**62",
        nifti(two=True, dim=[3, 2**62, 4, 5, 1, 1, 1, 1]),
        "the limit is 2147483648",
    )
    yield (
        "NIfTI-2 of -2**62",
        nifti(two=True, dim=[3, -(2**62), 4, 5, 1, 1, 1, 1]),
        "without any pixel",
    )
    yield "NIfTI-2 at -1", nifti(two=True, vox_offset=-1), "at byte -1"
    yield "NIfTI-2 at 2**62", nifti(two=True, vox_offset=2**62), "at byte 4.6"
    floats = VOLUME.astype("<f4")
    floats.reshape(5, 4, 3)[2, 1, 1] = np.nan  # the first axis runs fastest in the file
    yield "one nan", nifti(floats.tobytes(), datatype=16, bitpix=32), "1 of 60 values are NaN"
    yield (
        "all nan",
        nifti(np.full(60, np.nan, "<f8").tobytes(), datatype=64),
        "60 of 60 values are NaN",
    )
    yield (
        "beyond float32",
        nifti(np.linspace(0, 1e300, 60).tobytes(), datatype=64),
        "are NaN or infinite",
    )
    yield "all alike", nifti(b"\1\0" * 60), "every pixel is 1"
    yield "complex", nifti(np.linspace(0, 1, 120, dtype="<f4").tobytes(), datatype=32), "complex"
    yield (
        "big endian, one order swapped",
        nifti(order=">", dim=[3, 768, 1024, 1280, 1, 1, 1, 1]),
        "more than the file can hold",
    )


def packed_niftis() -> Iterator[tuple[str, Content, str]]:
    good = gzip.compress(nifti(), mtime=0)
    for where in (2, 12, -1, -4, -9, len(good) // 2):
        yield f"gzip cut at {where}", good[:where], DAMAGED
    yield "gzip checksum", good[:-8] + b"abcd" + good[-4:], DAMAGED
    yield "gzip length", good[:-4] + b"abcd", DAMAGED
    yield "gzip rubbish behind", good + b"rubbish that is no member", DAMAGED
    yield "gzip packed twice", gzip.compress(good), "gzipped file of unknown kind"
    yield "gzip of nothing", gzip.compress(b""), "unknown kind"
    yield "gzip of a text", gzip.compress(SECRET.encode() * 99), "gzipped text file"
    yield "gzip unknown packing", good[:2] + b"\7" + good[3:], DAMAGED
    yield "gzip name never ends", good[:3] + b"\x08" + good[4:10] + b"A" * 5000, DAMAGED
    yield (
        "gzip 2**31 voxels",
        gzip.compress(nifti(dim=[3, 2048, 1024, 1024, 1, 1, 1, 1])),
        "more than the file can hold",
    )
    yield "gzip 2**31 bytes in front", gzip.compress(nifti(vox_offset=2.0**31)), "at byte 2.14"
    bomb = nifti(b"", dim=[3, 400, 400, 200, 1, 1, 1, 1], datatype=2)
    yield (
        "gzip bomb of one value",
        lambda: gzip.compress(bomb + b"\0" * 32_000_000, 1),
        "every pixel is 0",
    )
    yield (
        "gzip bomb of no NIfTI",
        lambda: gzip.compress(b"\0" * 40_000_000, 1),
        "gzipped file of unknown kind",
    )


# ---------------------------------------------------------------- NumPy


def npy(header: str, data: bytes = bytes(range(60)), version: bytes = b"\1\0") -> bytes:
    text = header.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + data


def spec(shape: str = "(6, 10)", kind: str = "'|u1'", order: str = "False") -> str:
    return f"{{'descr': {kind}, 'fortran_order': {order}, 'shape': {shape}, }}"


def arrays() -> Iterator[tuple[str, bytes, str]]:
    bad = "this NumPy file is damaged"
    for shape, says in {
        "(-6, 10)": "without any pixel", "(-6, -10)": "without any pixel", "(0, 10)": "without any",
        "(2147483648, 2)": "the limit is", "(9999999, 9999999)": "the limit is", "(6, 11)": bad,
        "(60,)": "is no image", "()": "without any pixel", "6": bad, "(6.0, 10)": bad, "'six'": bad,
        "(True, True, 60)": bad, f"(1{'0' * 30}, 2)": "the limit is", "(2, 3, 5, 2)": "is no image",
    }.items():  # fmt: skip
        yield f"shape {shape[:20]}", npy(spec(shape)), says
    for kind in ("'|O'", "'<U4'", "'|S6'", "'<M8[s]'", "'|V3'", "'<c8'", "'nonsense'", "[('a', '<u1')]",
                 "12", "'<u9'", "'|u1, |u1'"):  # fmt: skip
        yield f"type {kind}", npy(spec("(3, 2)", kind)), f"pickle|are no image intensities|{bad}"
    yield "order of a text", npy(spec(order="'yes'")), bad
    yield "code for a header", npy("__import__('os').system('touch SECRET')"), bad
    yield "nested header", npy("(" * 3000 + ")" * 3000), bad
    yield "long header", npy(spec() + " " * 60_000), bad
    yield "header of a list", npy("[1, 2]"), bad
    yield "key missing", npy("{'descr': '|u1', 'shape': (6, 10), }"), bad
    yield "key too many", npy(spec()[:-1] + "'x': 1}"), bad
    yield "version 3 of latin1", npy(spec(), version=b"\3\0"), "is not known here"
    yield "version 9", npy(spec(), version=b"\x09\0"), "is not known here"
    yield (
        "header longer than the file",
        b"\x93NUMPY\2\0\xff\xff\xff\x7f{}",
        "NumPy header is damaged",
    )
    yield "cut by a byte", npy(spec())[:-1], bad
    yield "no header", b"\x93NUMPY\1\0", bad
    yield (
        "nan",
        npy(spec("(3, 5)", "'<f4'"), np.full(15, np.nan, "<f4").tobytes()),
        "15 of 15 values",
    )


def npz(method: int = zipfile.ZIP_DEFLATED, **arrays_: Any) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, value in arrays_.items():
            if not isinstance(value, bytes):
                single = io.BytesIO()
                np.save(single, np.asarray(value))
                value = single.getvalue()
            archive.writestr(f"{name}.npy", value)
    return packed.getvalue()


def npzs() -> Iterator[tuple[str, Content, str]]:
    yield "no image", npz(picture=PIXELS), "has no array `image`"
    yield "empty", npz(), "unknown kind"
    yield "image is rubbish", npz(image=b"rubbish, no array"), "this NumPy archive is damaged"
    yield "image is a pickle", npz(image=npy(spec("(2, 2)", "'|O'"), b"\x80\4K\1.")), "pickle"
    for name, spacing in {
        "0": [0, 1],
        "negative": [-1, 1],
        "nan": [np.nan, 1],
        "of three": [1, 1, 1],
        "text": ["a", "b"],
        "inf": [np.inf, 1],
    }.items():
        yield (
            f"spacing {name}",
            npz(image=PIXELS, spacing=spacing),
            "must be positive|this NumPy archive is damaged",
        )
    yield (
        "spacing of a million",
        npz(image=PIXELS, spacing=np.ones(1_000_000)),
        "that is no geometry",
    )
    yield "affine of three", npz(image=PIXELS, affine=np.eye(3)), "finite 4 x 4"
    yield "affine nan", npz(image=PIXELS, affine=np.full((4, 4), np.nan)), "finite 4 x 4"
    yield "affine singular", npz(image=PIXELS, affine=np.zeros((4, 4))), "singular"
    yield (
        "affine of text",
        npz(image=PIXELS, affine=np.full((4, 4), "a")),
        "this NumPy archive is damaged",
    )
    yield "channels too many", npz(image=PIXELS[None], channels=["a", "b"]), "2 channel names for 1"
    yield "channels without an axis", npz(image=PIXELS, channels=["a"]), "is no image"
    yield (
        "spacing is a pickle",
        npz(image=PIXELS, spacing=npy(spec("(2,)", "'|O'"), b"\x80\4K\1.")),
        "pickle",
    )
    yield (
        "bomb",
        lambda: npz(image=npy(spec("(5000, 5000)"), b"\0" * 25_000_000)),
        "every pixel is 0",
    )
    yield "huge by its word", npz(image=npy(spec("(40000, 40000)"))), "more than the file can hold"
    good = npz(image=PIXELS)
    yield "index cut", good[:-40], "not a zip file"
    yield (
        "checksum",
        good.replace(
            struct.pack("<I", zipfile.ZipFile(io.BytesIO(good)).infolist()[0].CRC), b"abcd"
        ),
        "Bad CRC-32",
    )


def cases() -> list[Case]:
    found = [Case(f"nifti {n}", written("scan.nii", c), s) for n, c, s in niftis()]
    found += [Case(f"nifti {n}", written("scan.nii.gz", c), s) for n, c, s in packed_niftis()]
    found += [Case(f"npy {n}", written("scan.npy", c), s) for n, c, s in arrays()]
    return found + [Case(f"npz {n}", written("scan.npz", c), s) for n, c, s in npzs()]


def odd() -> list[Odd]:
    mean = float(VOLUME.mean())
    found = [
        ("rubbish behind the values", written("a.nii", nifti() + b"rubbish" * 9), mean),
        ("an extension of 2 GB", written("a.nii", nifti(vox_offset=368.0, pixels=EXTENSION)), mean),
        ("size of the header 0", written("a.nii", nifti(sizeof_hdr=0)), mean),
        ("slope infinite, so none", written("a.nii", nifti(scl_slope=np.inf)), mean),
        ("slope 0, so none", written("a.nii", nifti(scl_slope=0, scl_inter=7)), mean),
        ("bits contradict the type", written("a.nii", nifti(bitpix=99)), mean),
        ("a bad quaternion beside a good sform", written("a.nii", nifti(quatern_b=np.nan)), mean),
        ("NIfTI-2", written("a.nii", nifti(two=True)), mean),
        (
            "gzip flags",
            written("a.nii.gz", gzip.compress(nifti())[:3] + b"\xe0" + gzip.compress(nifti())[4:]),
            mean,
        ),
        (
            "gzip in two members",
            written("a.nii.gz", gzip.compress(nifti()[:99]) + gzip.compress(nifti()[99:])),
            mean,
        ),
        (
            "40 MB behind the values, packed",
            written("a.nii.gz", lambda: gzip.compress(nifti() + b"\0" * 4 * 10**7, 1)),
            mean,
        ),
        ("big endian", written("a.nii", nifti(VOLUME.astype(">i2").tobytes(), ">")), mean),
    ]
    return [Odd(name, make, VOLUME.shape, mean) for name, make, mean in found]
