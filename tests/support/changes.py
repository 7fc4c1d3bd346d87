"""Changes of files at random: of bytes, words and values, so that formats stay what they are."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Mutate = Callable[[bytes, random.Random], bytes]


# ---------------------------------------------------------------- changes of bytes

EDGES = [0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31,
         2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1]  # fmt: skip
FLOATS = [0.0, -0.0, 1e-45, -1.0, 1e38, 1e308, float("inf"), float("-inf"), float("nan")]
HEAD = 512  # bytes in which most of a header lies


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, double or swap bytes, or write a number at the edge of its kind over some."""
    out, size = bytearray(data), len(data)
    if not size:
        return b"\0"
    at = rng.randrange(min(size, HEAD) if rng.random() < 0.6 else size)
    length = rng.choice([1, 2, 4, 8, 16, 64, 300])
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 8)):
                out[rng.randrange(min(size, at + HEAD))] ^= 1 << rng.randrange(8)
        case 1:
            del out[at:]
        case 2:
            del out[at : at + length]
        case 3:
            out[at:at] = out[at : at + length] * rng.choice([1, 1, 2, 100])
        case 4:
            order, kind = rng.choice("<>"), rng.choice("BHIQfd")
            if kind in "fd":
                value: Any = rng.choice(
                    FLOATS if kind == "d" else [f for f in FLOATS if f != 1e308]
                )
            else:
                value = rng.choice(EDGES) % 256 ** struct.calcsize(kind)
            new = struct.pack(order + kind, value)
            at -= at % len(new)
            out[at : at + len(new)] = new
        case _:
            other = rng.randrange(size)
            a, b = out[at : at + length], out[other : other + length]
            if len(a) == len(b):
                out[at : at + length], out[other : other + length] = b, a
    return bytes(out)


def of_png(data: bytes, rng: random.Random) -> bytes:
    """Change what a chunk holds, drop it or double it; the checksums are right again."""
    at, chunks = 8, []
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + size]])
        at += 12 + size
    one = rng.choice(chunks)
    match rng.randrange(4):
        case 0:
            chunks.remove(one)
        case 1:
            chunks.insert(rng.randrange(len(chunks)), one)
        case 2 if one[0] == b"IDAT":
            one[1] = zlib.compress(of_bytes(zlib.decompress(one[1]), rng))
        case _:
            one[1] = of_bytes(one[1], rng)
    parts = [
        struct.pack(">I", len(b)) + a + b + struct.pack(">I", zlib.crc32(a + b)) for a, b in chunks
    ]
    return data[:8] + b"".join(parts)


def of_gzip(data: bytes, rng: random.Random) -> bytes:
    """Change what is packed."""
    return gzip.compress(of_bytes(gzip.decompress(data), rng), 1)


def of_zip(data: bytes, rng: random.Random) -> bytes:
    """Change, drop, double or rename a member."""
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        members = [[m.filename, packed.read(m)] for m in packed.infolist()]
    one = rng.choice(members)
    match rng.randrange(5):
        case 0:
            members.remove(one)
        case 1:
            members.append(list(one))
        case 2:
            one[0] = rng.choice(
                ["../x", "/x", "a/" * 50 + "x", "", "x\0y", "x" * 300, "C:\\x", "."]
            )
        case _:
            one[1] = of_bytes(one[1], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(
        made, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as packed:
        for name, content in members:
            packed.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


# ---------------------------------------------------------------- changes of words and values

WORDS = ["", "0", "-1", "1e999", "nan", "inf", "-0", "9" * 30, "true", "null", "../x", "/dev/zero",
         "x" * 5000, "=1+1", "'", '"', "[", "{", "\\", "\x1b[31m", "é", "🧠", "\0", "a\tb", "1,2",
         "#slice=1"]  # fmt: skip
TOKEN = re.compile(r"[^\s,;=\"\[\]{}:]+")


def of_text(data: bytes, rng: random.Random) -> bytes:
    """Put a word in another's place, swap two, drop or double lines."""
    text = data.decode("utf-8", "replace")
    found, lines = list(TOKEN.finditer(text)), text.splitlines(keepends=True)
    what = rng.randrange(5)
    if what < 2 and found:
        one = rng.choice(found)
        text = text[: one.start()] + rng.choice(WORDS) + text[one.end() :]
    elif what == 2 and len(found) > 1:
        a, b = sorted(rng.sample(found, 2), key=re.Match.start)
        text = text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]
    elif lines:
        at = rng.randrange(len(lines))
        lines[at : at + 1] = [] if what == 3 else [lines[at]] * rng.choice([2, 2, 50])
        text = "".join(lines)
    return text.encode("utf-8", "replace")


VALUES: list[Any] = [None, True, 0, -1, 1, 2, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), 2**31,
                     2**53, 10**30, "", "x", "../x", "x" * 20_000, [], {}, [[]], [0] * 5000,
                     {"a": 1}]  # fmt: skip


def of_values(value: Any, rng: random.Random) -> Any:
    """Change plain values: one becomes another, two are swapped, one is left out, doubled or nested."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(VALUES)
    inner, key = rng.choice(places)
    match rng.randrange(6):
        case 0 if isinstance(inner, dict):
            del inner[key]
        case 1:
            other, name = rng.choice(places)
            inner[key], other[name] = other[name], copy.deepcopy(inner[key])
        case 2:
            for _ in range(rng.choice([1, 3, 200])):
                inner[key] = [inner[key]] if rng.random() < 0.5 else {"a": inner[key]}
        case 3 if isinstance(inner[key], list):
            inner[key] = inner[key] * rng.choice([0, 2, 1000])
        case _:
            inner[key] = rng.choice(VALUES)
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Change the values of a document."""
    return json.dumps(of_values(json.loads(data), rng)).encode()


def of_tensors(data: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file; its length is right again."""
    size = int.from_bytes(data[:8], "little")
    header = of_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


WAYS: dict[str, tuple[Mutate, ...]] = {
    "png": (of_bytes, of_png), "gz": (of_bytes, of_gzip, of_gzip), "zip": (of_bytes, of_zip),
    "npz": (of_bytes, of_zip), "json": (of_json, of_json, of_json, of_text, of_bytes),
    "safetensors": (of_tensors, of_tensors, of_bytes),
    **dict.fromkeys(("csv", "tsv", "toml"), (of_text, of_text, of_bytes)),
    **dict.fromkeys(("nrrd", "mha"), (of_bytes, of_text)),
}  # fmt: skip
