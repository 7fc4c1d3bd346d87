"""What the records of the feature systems compare beside maps, losses and parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Method
from normscan.methods.features.reverse import mean_map
from normscan.scores.postprocess import apply_chain
from normscan.scores.reductions import reduce_map
from tests.golden.records import RUNS, Check, batch_of

# --- shared


@torch.no_grad()
def flip(module: nn.Module) -> None:
    """Turn every parameter and statistic round along its first axis.

    The rule fills two networks of one shape alike, whose features then don't differ. The releases'
    second networks were filled and turned round in the same way.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.flip(0))


def _apart(method: Method, check: Check) -> None:
    """Flip the part that ``module`` names, if any."""
    if check.module:
        flip(method.get_submodule(check.module))


def map_apart(method: Method, check: Check) -> Tensor:
    _apart(method, check)
    return RUNS["map"](method, check)


def loss_apart(method: Method, check: Check) -> Tensor:
    _apart(method, check)
    return RUNS["loss"](method, check)


def score_apart(method: Method, check: Check) -> Tensor:
    """The score of the map, enlarged, post-processed and reduced as the card says."""
    _apart(method, check)
    batch = batch_of(check)
    maps = method.maps(batch)
    if maps.score is not None:
        return maps.score
    assert maps.map is not None
    size = tuple(batch.image.shape[2:])
    whole = F.interpolate(maps.map, size, mode="bilinear", align_corners=False)
    card, seen = method.card, np.ones(size, bool)
    chained = [apply_chain(card.postprocess, m, seen, seen[None]) for m in whole[:, 0].numpy()]
    return torch.tensor([reduce_map(card.reduction, m, seen) for m in chained])


# --- students


def map_of_whole_distances(method: Method, check: Check) -> Tensor:
    """The release leaves the half of each of three distances away."""
    return 8 * map_apart(method, check)


def score_of_whole_distances(method: Method, check: Check) -> Tensor:
    return 8 * score_apart(method, check)


def loss_of_whole_distances(method: Method, check: Check) -> Tensor:
    return 2 * loss_apart(method, check)


# --- reverse distillation


def mined_gradient(method: Any, check: Check) -> Tensor:
    """Of the embedding's first convolution, in the 21st step of 1000."""
    flip(method.encoder)
    method.train().step.fill_(20)
    sum(method.loss(batch_of(check), "", "").values()).backward()
    gradient: Tensor = method.embedding.paths[0][0][0].weight.grad
    return gradient


def map_of_one_view(method: Any, check: Check, view: int = 0) -> Tensor:
    """The map of one view of two, as the network sees it."""
    _apart(method, check)
    image = batch_of(check).image
    with torch.no_grad():
        return mean_map(
            *method.view(image.rot90(2, (2, 3)) if view else image, view)[:2], "nearest"
        )


def map_of_turned_view(method: Any, check: Check) -> Tensor:
    return map_of_one_view(method, check, view=1)


def student_parameters(method: Any, check: Check) -> Tensor:
    parts = (method.embedding, method.decoder, method.injection)
    return torch.tensor([float(sum(p.numel() for m in parts for p in m.parameters()))])


def planted_loss(method: Any, check: Check) -> Tensor:
    """The loss with the image turned and squared as what is planted, in a rectangle."""
    flip(method.teacher)
    batch = batch_of(check)
    mask = torch.zeros(len(batch), 1, 64, 64, dtype=torch.bool)
    mask[:, :, 16:48, 8:40] = True
    method.planted = lambda _: (batch.image.flip(-1) ** 2, mask)
    terms = method.train().loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)
