"""DICOM files that are wrong as bytes, and archives that aren't to be trusted."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from pydicom import uid as U

from tests.support.malformed import Case, Odd, written
from tests.support.malformed_dicom import BAD, CUT, NONE, VALUES, bytes_of

UNDEFINED = 0xFFFFFFFF
PIXELS = b"\xe0\x7f\x10\x00"


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    if vr in (b"SQ", b"OB", b"OW", b"UN", b"UT"):
        return struct.pack("<HH2sHI", group, number, vr, 0, size) + value
    return struct.pack("<HH2sH", group, number, vr, size) + value


def part10(body: bytes, syntax: str = U.ExplicitVRLittleEndian) -> bytes:
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    return b"\0" * 128 + b"DICM" + element(2, 0x10, b"UI", uid) + body


ITEM = struct.pack("<HHI", 0xFFFE, 0xE000, UNDEFINED)
OPEN = element(8, 0x1140, b"SQ", b"", UNDEFINED)


def swapped(old: bytes, new: bytes, **changes: Any) -> Callable[[], bytes]:
    """A good file in which some bytes stand for others."""

    def content() -> bytes:
        good = bytes_of(**changes)
        assert old in good, old
        return good.replace(old, new, 1)

    return content


def called(syntax: str) -> Callable[[], bytes]:
    """A good file, not compressed, that calls itself something else."""
    uid = U.ExplicitVRLittleEndian.encode() + b"\0"
    other = syntax.encode() + b"\0" * (len(syntax) % 2)
    return swapped(struct.pack("<H", len(uid)) + uid, struct.pack("<H", len(other)) + other)


def cut(
    where: float | bytes, syntax: str = U.ExplicitVRLittleEndian, extra: int = 0
) -> Callable[[], bytes]:
    """A file cut at a byte (from the end if negative), a part of it, or behind a pattern."""

    def content() -> bytes:
        good = bytes_of(syntax=syntax)
        if isinstance(where, bytes):
            return good[: good.rindex(where) + extra]
        return good[: where if isinstance(where, int) else int(where * len(good))]

    return content


def zipped(*members: tuple[str, bytes], **more: Any) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            for key, value in more.items():
                setattr(info, key, value)
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def crowded() -> bytes:
    """An archive whose index has 100,000 entries of one small file."""
    one = zipped(("a", b"x"))
    start, end = one.index(b"PK\1\2"), one.index(b"PK\5\6")
    index = one[start:end] * 100_000
    tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 34464, 34464, len(index), start, 0)
    return one[:start] + index + tail


def raw() -> Iterator[tuple[str, bytes | Callable[[], bytes], str]]:
    """Files that are wrong as bytes."""
    for where in (100, 133, 150, 200, 0.4, 0.8):
        yield f"cut at {where}", cut(where), "is no DICOM" if where == 100 else NONE
    yield "cut before the pixels", cut(PIXELS), NONE
    yield "cut within the length", cut(PIXELS, extra=9), BAD
    yield "cut behind the length", cut(PIXELS, extra=12), CUT
    yield "cut in the middle of the pixels", cut(-30), CUT
    yield "cut by a byte", cut(-1), "truncated"
    for syntax in (
        U.ImplicitVRLittleEndian,
        U.ExplicitVRBigEndian,
        U.DeflatedExplicitVRLittleEndian,
    ):
        for where in (0.5, -2):
            yield f"{syntax.name} cut at {where}", cut(where, syntax), f"truncated|{NONE}"
    yield "other magic", swapped(b"DICM", b"DICN"), "its content is no DICOM"
    yield "rubbish behind the magic", b"\0" * 128 + b"DICM" + bytes(range(256)) * 4, NONE
    yield "empty data set", part10(b""), NONE
    yield "only a patient", part10(element(0x10, 0x10, b"PN", b"SECRET^NAME ")), NONE
    yield "length over the end", part10(element(0x10, 0x10, b"PN", b"SECRET", 60000)), NONE
    yield "4 GB declared", part10(element(8, 0x2112, b"OB", b"SECRET", UNDEFINED - 1)), NONE
    yield (
        "private rubbish",
        part10(element(9, 0x10, b"LO", b"SECRET") + bytes(range(255)) * 8),
        NONE,
    )
    yield "never closed", part10(OPEN + ITEM), BAD
    yield "closed without an end", part10(OPEN + ITEM + element(0x10, 0x10, b"PN", b"SECRET")), BAD
    yield "2,000 deep", part10((OPEN + ITEM) * 2000), "nests its sequences too deeply"
    deep = b""
    for _ in range(400):
        deep = element(8, 0x1140, b"SQ", struct.pack("<HHI", 0xFFFE, 0xE000, len(deep)) + deep)
    yield "400 deep, lengths known", part10(deep), NONE
    yield (
        "undefined length of a text",
        part10(element(0x10, 0x10, b"UN", b"SECRET", UNDEFINED)),
        BAD,
    )
    yield (
        "tags run backwards",
        part10(element(0x28, 0x10, b"US", b"\6\0") + element(8, 0x60, b"CS", b"MR")),
        NONE,
    )
    yield "calls itself RLE", called(U.RLELossless), BAD
    yield "calls itself JPEG 2000", called(U.JPEG2000Lossless), BAD
    yield (
        "unknown transfer syntax",
        called("1.2.840.10008.1.9.9"),
        "1.2.840.10008.1.9.9 can't be decoded",
    )
    yield "transfer syntax is a text", called("SECRET"), "can't be decoded"
    yield "a video", called("1.2.840.10008.1.2.4.100"), "MPEG2.* can't be decoded"
    undefined = swapped(PIXELS + b"OW\0\0\x3c\0\0\0", PIXELS + b"OW\0\0\xff\xff\xff\xff")
    yield "pixels of undefined length", undefined, "truncated within its pixels"
    yield (
        "says big endian, is little",
        swapped(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"),
        NONE,
    )
    yield (
        "says deflated, is not",
        swapped(b"\x14\0" + b"1.2.840.10008.1.2.1\0", b"\x16\0" + b"1.2.840.10008.1.2.1.99"),
        BAD,
    )
    yield "rows as text", swapped(b"\x28\0\x10\0US", b"\x28\0\x10\0LO"), NONE
    yield "rows of four bytes", swapped(b"\x28\0\x10\0US\2\0", b"\x28\0\x10\0US\4\0"), NONE
    yield "rows of an odd length", swapped(b"\x28\0\x10\0US\2\0", b"\x28\0\x10\0US\1\0"), NONE
    yield "VR of no kind", swapped(b"\x28\0\x10\0US", b"\x28\0\x10\0ZZ"), NONE
    yield "pixels as text", swapped(PIXELS + b"OW", PIXELS + b"LT"), BAD
    zeros = zlib.compress(b"\0" * 20_000_000, 1)[2:]
    yield "deflated bomb", part10(zeros, U.DeflatedExplicitVRLittleEndian), "too many elements"
    many = element(0x28, 0x10, b"US", b"\x88\x13") + element(0x28, 0x11, b"US", b"\x88\x13")
    many += element(0x28, 0x100, b"US", b"\x08\0") + element(0x28, 0x101, b"US", b"\x08\0")
    many += element(0x28, 0x103, b"US", b"\0\0")
    many = element(0x28, 2, b"US", b"\1\0") + element(0x28, 4, b"CS", b"MONOCHROME2 ") + many
    many += element(0x7FE0, 0x10, b"OW", b"", 25_000_000)
    machine = zlib.compressobj(1, wbits=-15)
    packed = machine.compress(many + b"\0" * 25_000_000) + machine.flush()
    yield (
        "deflated 5000 x 5000 of one value",
        part10(packed, U.DeflatedExplicitVRLittleEndian),
        "every pixel is 0",
    )


def archives() -> Iterator[tuple[str, bytes | Callable[[], bytes], str]]:
    def holding(*names: str, **more: Any) -> Callable[[], bytes]:
        return lambda: zipped(*[(n, bytes_of(k % 4)) for k, n in enumerate(names)], **more)

    outside = "points outside"
    yield "a way up", holding("IM0", "../IM1"), outside
    yield "a way up within", holding("a/../../IM1"), outside
    yield "a way up, backwards", holding("a\\..\\..\\IM1"), outside
    yield "absolute", holding("/etc/IM1"), outside
    yield "of a drive", holding("C:\\IM1"), outside
    yield "a link", holding("IM1", external_attr=0o120777 << 16), "is a link"
    yield "100,000 entries", crowded, "the limit is 20000"
    yield "empty archive", zipped(), "is none of the formats"
    yield "a folder alone", zipped(("a/", b"")), "holds no DICOM image"
    yield "texts", zipped(("SECRET.txt", b"SECRET")), "holds no DICOM"
    yield "nested", lambda: zipped(("SECRET.zip", zipped(("IM1", bytes_of())))), "holds no DICOM"
    yield "bomb", zipped(("SECRET", b"\0" * 30_000_000)), "holds no DICOM image"
    yield "DICOM bomb", zipped(("SECRET", part10(b"\0" * 30_000_000))), "too many elements"
    yield "no end", lambda: holding("IM0", "IM1")()[:-30], "this zip archive is damaged"

    def wrong(old: bytes, new: bytes, at: int = 0) -> Callable[[], bytes]:
        def content() -> bytes:
            good = holding("SECRET")()
            where = good.index(old) + at
            return good[:where] + new + good[where + len(new) :]

        return content

    yield "encrypted", wrong(b"PK\1\2", b"\1\0", 8), "is encrypted"
    yield "other checksum", wrong(b"PK\1\2", b"abcd", 16), "no DICOM file could be read"
    yield "unknown packing", wrong(b"PK\1\2", b"\x63\0", 10), "no DICOM file could be read"
    yield (
        "4 GB declared",
        wrong(b"PK\1\2", b"\xff\xff\xff\xfe", 24),
        "would unpack to 4278190079 bytes",
    )
    yield (
        "less declared than there is",
        wrong(b"PK\1\2", b"\x20\0\0\0", 24),
        "no DICOM file could be read",
    )
    yield "entry elsewhere", wrong(b"PK\1\2", b"\x50\0\0\0", 42), "no DICOM file could be read"
    yield "entry behind the end", wrong(b"PK\1\2", b"\xff\xff\0\0", 42), "could be read|is damaged"
    yield "two names", wrong(b"PK\3\4", b"OTHER!", 30), "no DICOM file could be read"
    yield (
        "local header gone",
        wrong(b"PK\3\4", b"XX", 26),
        "no DICOM file could be read",
    )


def cases() -> list[Case]:
    found = [Case(f"bytes {n}", written("IM1.dcm", c), s) for n, c, s in raw()]
    return found + [Case(f"zip {n}", written("study.zip", c), s) for n, c, s in archives()]


def odd() -> list[Odd]:
    def zip_of_more() -> bytes:
        members = [(f"a/IM{k}", bytes_of(k)) for k in range(4)]
        return zipped(*members, ("README", b"SECRET"), ("__MACOSX/IM1", b"SECRET"), ("a/b/", b""))

    flat = float(VALUES[0].mean())
    implicit = swapped(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0")
    nameless = zipped(("SECRET", bytes_of())).replace(b"SECRET", b"\0ECRET")
    found = [
        ("archive of a file without a name", written("a.zip", nameless)),
        ("says implicit, is explicit", written("IM1", implicit)),
        ("rubbish behind", written("IM1", lambda: bytes_of() + b"rubbish!")),
        ("no preamble", written("IM1", lambda: bytes_of()[132:])),
        ("called a PNG", written("IM1.png", bytes_of)),
        ("preamble of a TIFF", written("IM1", lambda: b"II*\0" + bytes_of()[4:])),
    ]
    archive = Odd("archive of more", written("a.zip", zip_of_more), (5, 6, 4), float(VALUES.mean()))
    return [archive] + [Odd(name, make, (6, 5), flat) for name, make in found]
