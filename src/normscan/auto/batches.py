"""Batches of some of their samples, and at another size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from normscan.methods.base import Batch, Batches


def narrowed(batch: Batch, kept: Tensor) -> Batch:
    """Return the samples that are kept, (B,) bool, of a batch with one source of randomness."""
    kept = kept.to(batch.image.device)
    tensors: dict[str, Any] = {k: v[kept] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    columns = [c for c, k in zip(batch.columns, kept.tolist(), strict=False) if k]
    return replace(batch, **tensors, columns=columns)


def aside(batch: Batch, every: int) -> Tensor:
    """Return which samples (B,) are of the subjects that judge: one of so many."""
    if batch.subject is None:
        return torch.zeros(len(batch), dtype=torch.bool)
    return (batch.subject % every == every - 1).cpu()


def without(batches: Iterable[Batch], every: int) -> Batches:
    """Return the samples of the subjects that don't judge."""

    def each() -> Iterator[Batch]:
        for batch in batches:
            kept = ~aside(batch, every)
            if bool(kept.any()):
                yield narrowed(batch, kept)

    return Batches(each)


def at_size(batches: Iterable[Batch], side: int) -> Batches:
    """Return the batches at a size."""
    return Batches(lambda: (resized(batch, side) for batch in batches))


def resized(batch: Batch, side: int) -> Batch:
    """Return a batch whose images are ``side`` pixels along each axis."""
    image = scaled(batch.image, side)
    if image is batch.image:
        return batch
    inside = scaled(batch.foreground.to(image), side) >= 0.5
    return replace(batch, image=image, foreground=inside)


def scaled(x: Tensor, side: int) -> Tensor:
    """Return (B, C, *spatial) at a size, linearly; what is made smaller is smoothed before."""
    size = (side,) * (x.ndim - 2)
    if tuple(x.shape[2:]) == size:
        return x
    if x.ndim == 4:
        return interpolate(x, size, mode="bilinear", antialias=True)
    mode = "area" if x.shape[-1] > side else "trilinear"
    return interpolate(x, size, mode=mode, align_corners=None if mode == "area" else False)
