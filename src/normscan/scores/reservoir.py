"""Rows that come in parts: all of them or so many at random, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import IO

import numpy as np
import torch
from torch import Tensor

from normscan.errors import OutputError
from normscan.rng import Rng


def on_disk(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros whose values lie in a temporary file; the system pages them in and out.

    The file has no name (where the system allows that) and goes with the tensor.

    Raises:
        OutputError: no room for it.
    """
    like = torch.empty(0, dtype=dtype).numpy()
    with _temporary() as file:
        _grow(file, max(1, int(np.prod(shape, dtype=np.int64)) * like.itemsize))
        return torch.from_numpy(np.memmap(file, like.dtype, "r+", shape=tuple(shape)))


def _temporary() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="normscan-")


def _grow(file: IO[bytes], size: int, data: bytes | memoryview | None = None) -> None:
    """Make the file this long, or write the data behind what it has."""
    try:
        if data is not None:
            file.write(data)
        elif hasattr(os, "posix_fallocate"):
            # Room that is only promised would end the process when the disk is full.
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise OutputError(
            f"a memory bank on disk has no room for {size / 2**30:.2g} GiB in "
            f"{tempfile.gettempdir()} ({error.strerror}). Set TMPDIR to a folder on a larger disk, "
            "or keep fewer vectors (--largest)."
        ) from error


class Reservoir:
    """A uniform random choice of the rows that came, in bounded memory (Vitter 1985, algorithm R).

    Args:
        largest: rows that are kept at most.
        memory: bytes that they may take; more goes to a temporary file.

    Attributes:
        seen: number of rows that came.
    """

    def __init__(self, largest: int, memory: float) -> None:
        self.largest, self.memory = largest, memory
        self.seen = 0
        self._parts: list[Tensor] = []
        self._held, self._bytes = 0, 0
        self._file: IO[bytes] | None = None
        self._whole: Tensor | None = None

    def add(self, rows: Tensor, rng: Rng) -> None:
        """Take in (n, d) rows."""
        room = max(0, self.largest - self.seen)
        if room:
            self._append(rows[:room])
        late = rows[room:]
        if len(late):
            before = self.seen + len(rows) - len(late)
            among = torch.arange(before + 1, before + len(late) + 1, dtype=torch.float64)
            # 24 bits of one number don't tell 17 million places apart.
            coarse, fine = rng.uniform((len(late),)).double(), rng.uniform((len(late),)).double()
            places = ((coarse + fine * 2**-24) * among).long()
            # Of two rows at one place the later stays.
            last, index = np.unique(places.numpy()[::-1], return_index=True)
            kept = last < self.largest
            chosen = torch.from_numpy((len(late) - 1 - index)[kept])
            whole = self._joined()
            whole[torch.from_numpy(last[kept]).to(whole.device)] = late[chosen].to(whole)
        self.seen += len(rows)

    def _append(self, rows: Tensor) -> None:
        self._held += len(rows)
        self._bytes += rows.nbytes
        self._parts.append(rows)
        if self._bytes > self.memory:
            self._file = self._file or _temporary()
            for part in self._parts:
                _grow(self._file, self._bytes, part.cpu().contiguous().numpy().data)
            self._dim, self._dtype = rows.shape[1], rows.cpu().numpy().dtype
            self._parts.clear()

    def _joined(self) -> Tensor:
        if self._whole is None and self._file is not None:
            self._file.flush()
            shape = (self._held, self._dim)
            self._whole = torch.from_numpy(np.memmap(self._file, self._dtype, "r+", shape=shape))
            self._file.close()
        elif self._whole is None:
            first = self._parts[0]
            self._whole = first.new_empty(self._held, first.shape[1])
            start = 0
            while self._parts:  # each part is given back once it is copied
                part = self._parts.pop(0)
                self._whole[start : start + len(part)] = part
                start += len(part)
        return self._whole

    def finish(self) -> Tensor:
        """The rows (n, d) that are kept, in the order in which they came while all are.

        At least one must have come.
        """
        return self._joined()
