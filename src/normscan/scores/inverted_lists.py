"""FAISS for banks of vectors that are large or lie on disk."""

from __future__ import annotations

import importlib.util
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.scores.reservoir import on_disk

LISTS = 4096  # at most: the time and the memory of their training are bounded so
TRAINED = 40  # rows for each list that its centre is found among
PROBES = 32  # lists that a query looks into
ROWS = 2**16  # coded at a time


def has_faiss() -> bool:
    """Whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


class InvertedLists(nn.Module):
    """Rows of a bank that may be near a query, proposed by an inverted file of short codes.

    The rows are parted among the cells of k-means centres; what is left of a row behind its centre
    is rounded to 8 or 4 bits a number. Codes lie in memory, the bank needn't. The state is plain
    tensors, so that nothing is parsed by FAISS when a detector is loaded.

    Args:
        dim: of the rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.centres: Tensor  # (lists, dim)
        self.ranges: Tensor  # (2, dim), lowest and highest of what is left of each number
        self.codes: Tensor  # (rows, dim or dim / 2), list by list
        self.rows: Tensor  # (rows,), the row of each code
        self.sizes: Tensor  # (lists,)
        self.register_buffer("centres", torch.zeros(0, dim))
        self.register_buffer("ranges", torch.zeros(2, dim))
        self.register_buffer("codes", torch.zeros(0, 0, dtype=torch.uint8))
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.int64))
        self.register_load_state_dict_post_hook(InvertedLists._forget)

    def stays_mapped(self, name: str, value: Tensor) -> bool:
        """The codes: FAISS has its own copy."""
        return name == "codes"

    def _forget(self, *_: object) -> None:
        self.__dict__.pop("index", None)

    @staticmethod
    def _faiss() -> Any:
        if not has_faiss():
            raise ArgumentError(
                "search='faiss' needs FAISS. Install it: pip install normscan[faiss]; or choose "
                "search='float32'."
            )
        import faiss

        return faiss

    def _empty(self, lists: int, bits: int) -> Any:
        faiss = self._faiss()
        kind = faiss.ScalarQuantizer.QT_8bit if bits == 8 else faiss.ScalarQuantizer.QT_4bit
        centres = faiss.IndexFlatL2(self.dim)
        index = faiss.IndexIVFScalarQuantizer(centres, self.dim, lists, kind)
        index.nprobe = min(PROBES, lists)
        index.cp.min_points_per_centroid = 1  # else a bank of few rows brings a warning
        index.own_fields = False
        self._centres = centres  # the index looks at it and doesn't own it
        return index

    def build(self, bank: Tensor, bits: int = 8) -> None:
        """Part and code the rows of a bank (n, dim), float32 on the CPU.

        Args:
            bank: at least one row.
            bits: of a number, 8 or 4.
        """
        faiss = self._faiss()
        n = len(bank)
        lists = max(1, min(round(4 * n**0.5), n // TRAINED, LISTS))
        index = self._empty(lists, bits)
        # Evenly over the bank: neighbouring rows are patches of one image.
        sample = bank[:: max(1, n // (TRAINED * lists))][: TRAINED * lists].contiguous()
        index.train(sample.numpy())
        self.centres = torch.from_numpy(index.quantizer.reconstruct_n(0, lists))
        nearest = torch.from_numpy(index.quantizer.search(sample.numpy(), 1)[1][:, 0])
        rest = sample - self.centres[nearest]
        self.ranges = torch.stack([rest.amin(0), rest.amax(0)])
        # Trained on the two ends, as after loading. What was learnt can't be read from FAISS: where
        # SimpleITK came first, Python takes a C++ vector for one of SimpleITK's.
        index.sq.train(self.ranges.numpy())
        for part in bank.split(ROWS):
            index.add(part.numpy())
        held = index.invlists
        self.sizes = torch.tensor([held.list_size(i) for i in range(lists)])
        self.codes = on_disk((n, index.code_size), torch.uint8)
        self.rows = torch.empty(n, dtype=torch.int64)
        start = 0
        for i, size in enumerate(self.sizes.tolist()):
            if size:
                part = slice(start, start + size)
                codes = faiss.rev_swig_ptr(held.get_codes(i), size * index.code_size)
                self.codes[part] = torch.from_numpy(codes.reshape(size, -1))
                self.rows[part] = torch.from_numpy(faiss.rev_swig_ptr(held.get_ids(i), size))
                start += size
        self.__dict__["index"] = index

    @cached_property
    def index(self) -> Any:
        """The index of FAISS, from the state.

        Raises:
            ArgumentError: the state doesn't fit together.
        """
        faiss = self._faiss()
        n, width = self.codes.shape
        lists = len(self.centres)
        kinds = {k: v.dtype for k, v in InvertedLists(self.dim).named_buffers()}
        # FAISS trusts what it is given: a size too large would have it read beyond the codes.
        sound = (
            min(n, lists) > 0
            and {k: v.dtype for k, v in self.named_buffers()} == kinds
            and self.centres.shape[1] == self.dim
            and self.ranges.shape == (2, self.dim)
            and self.sizes.shape == (lists,)
            and self.rows.shape == (n,)
            and width in (self.dim, -(-self.dim // 2))
            and bool(((self.sizes >= 0) & (self.sizes <= n)).all())
            and int(self.sizes.sum()) == n
            and bool(((self.rows >= 0) & (self.rows < n)).all())
        )
        if not sound:
            raise ArgumentError("the inverted lists of the memory bank are damaged. Fit again.")
        index = self._empty(lists, 8 if width == self.dim else 4)
        self._centres.add(self.centres.numpy())
        index.sq.train(np.ascontiguousarray(self.ranges.numpy()))
        start = 0
        for i, size in enumerate(self.sizes.tolist()):
            if size:
                rows = np.ascontiguousarray(self.rows[start : start + size].numpy())
                codes = np.ascontiguousarray(self.codes[start : start + size].numpy())
                index.invlists.add_entries(i, size, faiss.swig_ptr(rows), faiss.swig_ptr(codes))
                start += size
        index.ntotal, index.is_trained = n, True
        return index

    def propose(self, queries: Tensor, k: int) -> Tensor:
        """Rows (n, k) that may be nearest to queries (n, dim); -1 where lists hold fewer."""
        found = self.index.search(queries.detach().cpu().contiguous().numpy(), k)[1]
        return torch.from_numpy(found)
