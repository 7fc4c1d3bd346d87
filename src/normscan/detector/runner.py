"""A method over some pieces of scans: arrays in, arrays out, on the method's own device."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscan.detector.graph import Outputs, Pieces
from normscan.methods.base import Batch, Maps, Method
from normscan.rng import Rng, derive_seed


def batch_of(method: Method, pieces: Pieces, seed: int) -> Batch:
    """Return pieces as the method sees them, each with random numbers of its own."""
    tensors = itertools.chain(method.parameters(), method.buffers())
    device = next((tensor.device for tensor in tensors), torch.device("cpu"))
    beside: dict[str, Any] = {
        name: torch.from_numpy(array) for name, array in pieces.beside.items()
    }
    return Batch(
        image=torch.from_numpy(np.ascontiguousarray(pieces.image)),
        foreground=torch.from_numpy(np.ascontiguousarray(pieces.foreground)),
        rng=Rng([derive_seed(seed, "predict", key) for key in pieces.keys]),
        position=torch.from_numpy(pieces.position),
        columns=pieces.columns,
        further={name: torch.from_numpy(array) for name, array in pieces.further.items()},
        **beside,
    ).to(device)


def run(method: Method, pieces: Pieces, seed: int) -> list[Outputs]:
    """Return what each member of a method finds in some pieces."""
    with torch.set_grad_enabled(method.needs_grad):
        members = method.each(batch_of(method, pieces, seed))
    sizes = {name: array.shape[2:] for name, array in pieces.further.items()}
    return [_outputs(maps, pieces.image.shape[2:], sizes) for maps in members]


def resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    """Enlarge a map (B, C, *its own grid) to a size, linearly."""
    if tuple(values.shape[2:]) == size:
        return values
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return torch.nn.functional.interpolate(values, size, mode=mode, align_corners=False)


def _outputs(maps: Maps, size: tuple[int, ...], sizes: dict[str, tuple[int, ...]]) -> Outputs:
    named = {name: getattr(maps, name) for name in Outputs.NAMES}
    return Outputs(
        {
            name: resized(tensor.detach().float(), size).cpu().numpy()
            for name, tensor in named.items()
            if tensor is not None
        },
        None if maps.score is None else maps.score.double().cpu().tolist(),
        {
            name: resized(tensor.detach().float(), sizes[name]).cpu().numpy()
            for name, tensor in maps.further.items()
        },
    )
