"""The tensors of an ONNX file, without the library: a protocol buffer of few fields.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, wire format:
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from normscan.errors import WeightsError

_GRAPH, _INITIALIZER = 7, 5
_DIMS, _TYPE, _FLOATS, _NAME, _RAW = 1, 2, 4, 8, 9
_FLOAT = 1


def initializers(path: Path) -> dict[str, np.ndarray]:
    """Return the constant float32 tensors of the graph by name.

    Raises:
        WeightsError: it is no ONNX file, or a damaged one.
    """
    data = memoryview(path.read_bytes())
    try:
        found = [
            _tensor(tensor) for graph in _of(data, _GRAPH) for tensor in _of(graph, _INITIALIZER)
        ]
    except (IndexError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is no ONNX file, or a damaged one ({error}).") from error
    return {name: values for name, values in found if values is not None}


def _tensor(data: memoryview) -> tuple[str, np.ndarray | None]:
    """Name and values of a tensor; None where they aren't float32."""
    shape: list[int] = []
    kind, name = 0, ""
    values: list[np.ndarray] = []
    for field, value in _fields(data):
        if field == _DIMS:
            shape += [value] if isinstance(value, int) else _varints(value)
        elif field == _TYPE and isinstance(value, int):
            kind = value
        elif field == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode()
        elif field in (_RAW, _FLOATS) and isinstance(value, memoryview):
            values.append(np.frombuffer(value, "<f4") if len(value) % 4 == 0 else np.zeros(0, "f4"))
    if kind != _FLOAT:
        return name, None
    flat = np.concatenate([np.zeros(0, np.float32), *values]).astype(np.float32)
    if len(flat) != math.prod(shape):
        raise ValueError(f"tensor '{name}' holds {len(flat)} numbers, not {math.prod(shape)}")
    return name, flat.reshape(shape)


def _of(data: memoryview, wanted: int) -> Iterator[memoryview]:
    for field, value in _fields(data):
        if field == wanted and isinstance(value, memoryview):
            yield value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield field, value
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("it ends early")
        yield field, data[at : at + length]
        at += length


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


_METADATA = 14  # of the model; a message of key and value


def with_metadata(model: bytes, entries: Mapping[str, str]) -> bytes:
    """Return a model that says more of itself: fields that come later join those before them."""
    more = b""
    for key, value in entries.items():
        pair = _written(1, key.encode()) + _written(2, value.encode())
        more += _written(_METADATA, pair)
    return model + more


def _written(field: int, content: bytes) -> bytes:
    """A field of bytes: its number, the length, the content."""
    head, length = bytes([field << 3 | 2]), len(content)
    while length >= 0x80:
        head, length = head + bytes([length & 0x7F | 0x80]), length >> 7
    return head + bytes([length]) + content
