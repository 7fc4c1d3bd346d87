"""Malformed TIFF, PNG, JPEG and BMP files, addresses, and things that are no files at all."""

from __future__ import annotations

import gzip
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.support.malformed import Case, Make, Odd, addressed, written
from tests.support.malformed_volumes import BAD, DAMAGED, PIXELS, Content, nifti, npy, spec

# ---------------------------------------------------------------- TIFF


def tiff(**more: Any) -> bytes:
    made = io.BytesIO()
    values = more.pop("values", PIXELS)
    tifffile.imwrite(made, values, metadata=None, **more)
    return made.getvalue()


def retagged(changes: dict[int, tuple[int, int, int]], **more: Any) -> bytes:
    """A TIFF with entries (type, count, value) of its first directory changed."""
    data = bytearray(tiff(**more))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    found = set()
    for n in range(count):
        entry = at + 2 + 12 * n
        (code,) = struct.unpack_from("<H", data, entry)
        if code in changes:
            struct.pack_into("<HII", data, entry + 2, *changes[code])
            found.add(code)
    assert found == set(changes)
    return bytes(data)


def tiffs() -> Iterator[tuple[str, Content, str]]:
    width, height, bits, packing, photometric, strips, samples, rows = (
        256, 257, 258, 259, 262, 273, 277, 278)  # fmt: skip
    for value in (0, 2**31 - 1, 2**32 - 1):
        yield f"width {value}", retagged({width: (4, 1, value)}), "without any pixel|the limit is"
    yield (
        "40000 squared",
        retagged({width: (4, 1, 40000), height: (4, 1, 40000)}),
        "more than the file can hold",
    )
    yield "twice as high", retagged({height: (4, 1, 24), rows: (4, 1, 24)}), BAD
    yield "13 bits", retagged({bits: (3, 1, 13)}), BAD
    yield "200 bits", retagged({bits: (3, 1, 200)}), "200 bits.*isn't supported"
    yield "no packing known", retagged({packing: (3, 1, 31337)}), BAD
    yield "packed by its word", retagged({packing: (3, 1, 8)}), BAD
    yield "LZW by its word", retagged({packing: (3, 1, 5)}), BAD
    yield "photometric 99", retagged({photometric: (3, 1, 99)}), "as 99.*isn't supported"
    yield "palette without colours", retagged({photometric: (3, 1, 3)}), "without its colours"
    yield "7 samples", retagged({samples: (3, 1, 7)}), BAD
    yield "strip beyond the end", retagged({strips: (4, 1, 2**31)}), BAD
    long = retagged({279: (4, 1, 2**32 - 1)}, compression="zlib")
    yield "strip of 4 GB", long, "damaged or truncated"
    yield "two billion strips", retagged({strips: (4, 2**31 - 1, 8)}), BAD
    yield "tags of no type", retagged({width: (99, 1, 10)}), "without any pixel"
    good = tiff()
    (at,) = struct.unpack_from("<I", good, 4)
    (count,) = struct.unpack_from("<H", good, at)
    end = at + 2 + 12 * count
    yield "directory beyond the end", good[:4] + b"\xff\xff\xff\x7f" + good[8:], "holds no image"
    yield "directory at itself", good[:4] + b"\4\0\0\0" + good[8:], f"{BAD}|without any pixel"
    yield "no directory", good[:4] + b"\0\0\0\0" + good[8:], "holds no image"
    yield "directory of no tags", good[:at] + b"\0\0" + good[at + 2 :], "without any pixel"
    yield "directory of 65535 tags", good[:at] + b"\xff\xff" + good[at + 2 :], BAD
    loop = tiff(values=np.stack([PIXELS] * 2), photometric="minisblack")
    (first,) = struct.unpack_from("<I", loop, 4)
    (tags,) = struct.unpack_from("<H", loop, first)
    link = first + 2 + 12 * tags
    yield (
        "directory in a loop",
        good[:end] + struct.pack("<I", at) + good[end + 4 :],
        "runs in a circle",
    )
    yield (
        "next directory beyond",
        loop[:link] + b"\xff\xff\xff\x7f" + loop[link + 4 :],
        "truncated behind page 1",
    )
    yield "cut by a byte", good[:-1], BAD
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.stack([PIXELS] * 4), compression="zlib", photometric="minisblack")
    whole = stack.getvalue()
    for part in (0.5, 0.8):
        yield (
            f"stack cut at {part}",
            whole[: int(part * len(whole))],
            "truncated behind page|damaged, truncated",
        )
    tiled = {"tile": (16, 16), "values": np.arange(1024, dtype="u2").reshape(32, 32)}
    yield "tiles of 2**31", retagged({322: (4, 1, 2**31)}, **tiled), BAD
    yield "tiles of 0", retagged({323: (4, 1, 0)}, **tiled), BAD
    yield "tiles cut", tiff(**tiled)[:-700], BAD
    bomb = {"compression": "zlib", "values": np.zeros((5000, 5000), "u1"), "rowsperstrip": 5000}
    yield "bomb", lambda: tiff(**bomb), "every pixel is 0"
    yield (
        "bomb by its word",
        retagged({width: (4, 1, 40000), height: (4, 1, 40000)}, compression="zlib"),
        "more than the file can hold",
    )
    yield "packed rubbish", tiff(compression="zlib").replace(b"x\x9c", b"xx"), BAD
    yield "nan", tiff(values=np.full((4, 5), np.nan, "f4")), "20 of 20 values"
    yield "complex", tiff(values=PIXELS.astype("c8")), "magnitude"
    yield "of other sizes", b"II+\0\4\0\0\0" + b"\0" * 60, BAD


# ---------------------------------------------------------------- PNG, JPEG, BMP


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return struct.pack(">I", size) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 10, height: int = 12, depth: int = 8, colour: int = 0, data: bytes | None = None,
        rest: tuple[int, int, int] = (0, 0, 0), before: bytes = b"") -> bytes:  # fmt: skip
    rows = np.pad(PIXELS, ((0, 0), (1, 0))).tobytes()
    body = zlib.compress(rows) if data is None else data
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, *rest))
    return b"\x89PNG\r\n\x1a\n" + start + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def saved(kind: str, **more: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(more.pop("values", PIXELS)).save(made, kind, **more)
    return made.getvalue()


def rasters() -> Iterator[tuple[str, str, Content, str]]:
    for size in ((0, 12), (10, 0), (2**31 - 1, 2**31 - 1), (2**32 - 1, 2), (60000, 60000)):
        yield "png", f"size {size[0]} x {size[1]}", png(*size), f"{BAD}|more pixels than the limit"
    yield "png", "3 bits", png(depth=3), BAD
    yield "png", "colour 7", png(colour=7), BAD
    yield "png", "16 bits, half the data", png(depth=16), BAD
    yield "png", "filter 9", png(data=zlib.compress(b"\x09" + b"\1" * 10) * 12), BAD
    yield "png", "interlacing 5", png(rest=(0, 0, 5)), BAD
    yield "png", "rubbish for pixels", png(data=b"rubbish that was never packed"), BAD
    yield "png", "no pixels", png(data=b""), BAD
    yield "png", "palette without colours", png(colour=3), "every pixel is 0"
    yield "png", "chunk of 2 GB", png(before=chunk(b"tEXt", b"Patient\0SECRET", 2**31 - 1)), BAD
    yield "png", "checksum", png().replace(b"IDAT", b"IDAT", 1)[:-20] + b"abcd" + png()[-16:], BAD
    yield (
        "png",
        "text bomb",
        png(before=chunk(b"zTXt", b"Patient\0\0" + zlib.compress(b"S" * 9_000_000, 1))),
        "too large",
    )
    yield (
        "png",
        "profile bomb",
        png(before=chunk(b"iCCP", b"p\0\0" + zlib.compress(b"S" * 9_000_000, 1))),
        "too large",
    )
    yield (
        "png",
        "bomb",
        lambda: png(5000, 5000, data=zlib.compress(b"\0" * 25_005_000, 1)),
        "every pixel is 0",
    )
    yield "png", "signature alone", b"\x89PNG\r\n\x1a\n", BAD
    yield "png", "header alone", png()[:33], BAD
    yield "png", "one colour", saved("PNG", values=np.full((5, 4, 3), 9, "u1")), "every pixel is 9"
    jpeg = saved("JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for name, rows, columns in (
        ("60000 squared", 60000, 60000),
        ("no rows", 0, 10),
        ("no columns", 12, 0),
    ):
        huge = jpeg[: frame + 5] + struct.pack(">HH", rows, columns) + jpeg[frame + 9 :]
        yield "jpg", name, huge, f"{BAD}|more pixels than the limit"
    yield "jpg", "marker alone", b"\xff\xd8\xff", BAD
    yield "jpg", "no pixels", jpeg[: jpeg.index(b"\xff\xda")], BAD
    yield "jpg", "no tables", jpeg.replace(b"\xff\xdb", b"\xff\xfe"), BAD
    yield "jpg", "12 bits", jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], BAD
    yield "jpg", "200 components", jpeg[: frame + 9] + b"\xc8" + jpeg[frame + 10 :], BAD
    yield "jpg", "segment over the end", b"\xff\xd8\xff\xe1\xff\xffExif\0\0SECRET", BAD
    bmp = saved("BMP")
    for name, at, value in (("width -1", 18, -1), ("width 0", 18, 0), ("width 2**31", 18, 2**31 - 1),
                            ("height 2**31", 22, 2**31 - 1), ("pixels beyond", 10, 2**30),
                            ("header of 4 GB", 14, -4), ("packing 77", 30, 77)):  # fmt: skip
        yield (
            "bmp",
            name,
            bmp[:at] + struct.pack("<i", value) + bmp[at + 4 :],
            f"{BAD}|more pixels than the limit|isn't supported here",
        )
    yield "bmp", "77 bits", bmp[:28] + b"\x4d\0" + bmp[30:], "isn't supported here"
    yield "bmp", "letters alone", b"BM", BAD
    yield "bmp", "cut by ten bytes", bmp[:-10], BAD


# ---------------------------------------------------------------- no files


def things() -> Iterator[tuple[str, Make, str]]:
    def made(name: str, how: Callable[[Path], Any]) -> Make:
        def make(folder: Path) -> Path:
            how(folder / name)
            return folder / name

        return make

    for name in ("scan.dcm", "scan.nii.gz", "scan.png", "scan"):
        yield f"empty {name}", written(name, b""), "the file is empty"
    yield "folder called scan.nii.gz", made("scan.nii.gz", Path.mkdir), "is a folder"
    yield "folder called scan.dcm", made("scan.dcm", Path.mkdir), "without DICOM images"
    for name in ("scan.dcm", "scan.nii", "scan.nii.gz"):
        yield f"pipe {name}", made(name, os.mkfifo), "not a regular file"
    yield (
        "folder of a pipe",
        made("study", lambda p: (p.mkdir(), os.mkfifo(p / "IM1"))),
        "without DICOM images",
    )
    yield (
        "link to nothing",
        made("scan.nii", lambda p: p.symlink_to("nowhere.nii")),
        "is a link to nothing",
    )
    yield "link to itself", made("scan.dcm", lambda p: p.symlink_to(p.name)), "is a link to nothing"
    yield (
        "link to endless zeros",
        made("scan.nii", lambda p: p.symlink_to("/dev/zero")),
        "not a regular file",
    )
    yield (
        "folder of links in a circle",
        made("study", lambda p: (p.mkdir(), (p / "a").symlink_to("."))),
        "without DICOM images",
    )
    yield (
        "folder of a broken link",
        made("study", lambda p: (p.mkdir(), (p / "IM1").symlink_to("x"))),
        "without DICOM images",
    )
    yield (
        "folder of empty files",
        made("study", lambda p: (p.mkdir(), (p / "IM1").touch())),
        "without DICOM images",
    )
    yield (
        "name of bytes",
        made(os.fsdecode(b"scan\xff.nii.gz"), lambda p: p.write_bytes(b"\x1f\x8b")),
        DAMAGED,
    )
    yield "name too long", lambda folder: folder / ("a" * 300 + ".png"), "no such file"
    yield "name with a zero", lambda folder: folder / "a\0b.nii.gz", "no such file"
    yield "below a file", lambda folder: written("a.png", png())(folder) / "b.png", "no such file"
    plain, packed = written("a.nii", nifti()), written("a.nii.gz", gzip.compress(nifti()))
    for address, says in {
        "#slice=99": "there is no slice 99", "#slice=-1": "is no number", "#slice=1e3": "is no number",
        "#slice=1&axis=3": "axis 3 is none", "#series=1": "is no DICOM", "#frame=0": "is no DICOM",
        "#slise=1": "Did you mean 'slice'", "#slice=": "selects nothing",
    }.items():  # fmt: skip
        yield f"address {address}", addressed(plain, address), says
        if "#slice=" in address[:8]:
            yield f"address {address}, packed", addressed(packed, address), says
    cut = written("a.nii.gz", gzip.compress(nifti())[:-30])
    yield "slice of a cut volume", addressed(cut, "#slice=1"), DAMAGED


def cases() -> list[Case]:
    found = [Case(f"tiff {n}", written("scan.tif", c), s) for n, c, s in tiffs()]
    found += [Case(f"{k} {n}", written(f"scan.{k}", c), s) for k, n, c, s in rasters()]
    return found + [Case(f"no file: {n}", make, s) for n, make, s in things()]


def odd() -> list[Odd]:
    pictures = [
        ("PNG of another packing", written("a.png", png(rest=(3, 0, 0)))),
        ("JPEG called PNG", written("a.jpg", png())),
        ("rubbish behind a PNG", written("a.png", png() + b"rubbish" * 9)),
        (
            "NumPy values too many",
            written("a.npy", npy(spec("(12, 10)"), PIXELS.tobytes() + b"more")),
        ),
    ]
    shape, mean = PIXELS.shape, float(PIXELS.mean())
    return [Odd(name, make, shape, mean) for name, make in pictures]
