"""Rows that the processes of a training hold together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return how many processes train together; 1 where there is only this one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(rows: Tensor) -> tuple[Tensor, slice]:
    """Return the rows of all processes, in their order, and which of them are this process's.

    What is done with all rows alike leaves the same state in every process. All processes must call
    it, as often and in the same order, those without any row too.

    Args:
        rows: (n, ...), n may differ between processes; no gradient goes through.
    """
    count = processes()
    if count == 1:
        return rows, slice(0, len(rows))
    rows = rows.detach().contiguous()
    mine = torch.tensor([len(rows)], device=rows.device)
    told = [torch.zeros_like(mine) for _ in range(count)]
    dist.all_gather(told, mine)
    sizes = [int(n) for n in told]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(found, padded)
    start = sum(sizes[: dist.get_rank()])
    joined = torch.cat([part[:n] for part, n in zip(found, sizes, strict=True)])
    return joined, slice(start, start + len(rows))
