"""What the records of the variational autoencoders compare beside maps, losses and parameters."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from normscan.methods.base import Batch
from normscan.methods.variational import ascent, gradients
from normscan.scores.postprocess import apply_chain
from tests.golden.adapters_compact import drawn_batch
from tests.golden.fill import images
from tests.golden.records import Check, batch_of


def drawn_map(method: Any, check: Check) -> Tensor:
    return method.maps(drawn_batch(check)).map


def drawn_loss(method: Any, check: Check) -> Tensor:
    terms = method.train().loss(drawn_batch(check), "", "")
    return sum(terms.values()).detach().reshape(1)


def loss_with_mirrored_context(method: Any, check: Check) -> Tensor:
    """The mirrored image stands for the one with hidden squares."""
    with patch.object(gradients, "context_square", lambda x, rng: x.flip(-1)):
        return drawn_loss(method, check)


def drawn_restoration(method: Any, check: Check) -> Tensor:
    batch = drawn_batch(check)
    with torch.no_grad():
        code, _ = method.network.code(batch.image, batch.rng.normal)
        return method.network.decode(code)[0]


def distance_of_a_pair(method: Any, check: Check) -> Tensor:
    """From an image mirrored, with half its values for deviations."""
    x = images(*check.shape, rule=check.rule)
    return ascent.distance(x, x.flip(-1), 0.5 * x)


def mask_of_a_pair(method: Any, check: Check) -> Tensor:
    """Pixels above 0 in each slice of a volume whose restorations are given."""
    x = images(*check.shape)
    x = torch.where(x < 0.2, 0.0, x)
    batch = batch_of(check)
    batch.image = x
    with patch.object(method, "restored", lambda *_: 1.25 * x.flip(-1) ** 2):
        found = method.maps(batch).map
    chain = ("otsu", "opening=3", "nonzero")
    volume, image = (v[:, 0].movedim(0, -1).numpy() for v in (found, x))
    kept = apply_chain(chain, volume, np.ones(volume.shape, bool), image[None])
    return torch.from_numpy((kept > 0).sum((0, 1)))


def drawn_game(method: Any, check: Check) -> Tensor:
    """The loss of a player, of its name, with all draws by the rule."""
    terms = method.train().loss(drawn_batch(check), check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def _with_dark_rows(check: Check) -> Batch:
    batch = drawn_batch(check)
    batch.image[:, :, :4] = 0
    batch.foreground = batch.image > 0
    return batch


def attention_map(method: Any, check: Check) -> Tensor:
    return method.maps(_with_dark_rows(check)).map


def attention_score(method: Any, check: Check) -> Tensor:
    return method.maps(_with_dark_rows(check)).score


def attention_loss(method: Any, check: Check) -> Tensor:
    return sum(method.train().loss(_with_dark_rows(check), "", "").values()).detach().reshape(1)


def _single(method: Any) -> Any:
    """MONAI's codebook works in single precision; it is as small as the features are."""
    method.float()
    with torch.no_grad():
        for parameter in method.network.quantizer.parameters():
            parameter.mul_(0.05)
    return method


def _single_batch(check: Check) -> Batch:
    batch = batch_of(check)
    batch.image = batch.image.float()
    return batch


def healed_map(method: Any, check: Check) -> Tensor:
    return _single(method).maps(_single_batch(check)).map


def code_score(method: Any, check: Check) -> Tensor:
    return _single(method).maps(_single_batch(check)).score


def code_loss(method: Any, check: Check) -> Tensor:
    """Of a phase, in evaluation mode, in which the codebook stays as it is."""
    terms = _single(method).loss(_single_batch(check), check.phase, "")
    return sum(terms.values()).detach().reshape(1)
