"""What the records of the adversarial systems compare beside parameters, maps and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from normscan.networks.memory import MemoryQueue
from tests.golden.adapters_networks import settle
from tests.golden.fill import RULES
from tests.golden.records import Check, batch_of


class Falling:
    """Stands for ``Rng``: uniform numbers fall from 0.9 to 0.1 over the batch."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        falling = torch.linspace(0.9, 0.1, shape[0], dtype=torch.float64)
        return falling.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)


def labelled_loss(method: Any, check: Check) -> Tensor:
    """The loss of four images, the first and the last one healthy."""
    label = torch.tensor([0, 1, 1, 0])
    batch = replace(batch_of(check), rng=Falling(), label=label)  # type: ignore[arg-type]
    terms = method.train().loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def falling_loss(method: Any, check: Check) -> Tensor:
    """The loss with falling numbers for random ones."""
    batch = replace(batch_of(check), rng=Falling())  # type: ignore[arg-type]
    terms = method.train().loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def _with_queues(method: Any, check: Check) -> Any:
    """Fill the queues, which are no parameters, by the rule."""
    for part in method.modules():
        if isinstance(part, MemoryQueue):
            part.slots.copy_(RULES[check.rule](tuple(part.slots.shape)))
    return method


def queued_restoration(method: Any, check: Check) -> Tensor:
    found = _with_queues(method, check).maps(batch_of(check)).reconstruction
    assert isinstance(found, Tensor)
    return found


def queued_logits(method: Any, check: Check) -> Tensor:
    x = method.scaled(batch_of(check).image)
    with torch.no_grad():
        logits: Tensor = method.judged(_with_queues(method, check).network(x))
    return logits


def queued_loss(method: Any, check: Check) -> Tensor:
    still = patch("normscan.methods.adversarial.places.shifted", lambda x, rng: x)
    with still:  # images aren't moved
        method = _with_queues(method, check).train()
        terms = method.loss(batch_of(check), check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def queue_after(method: Any, check: Check) -> Tensor:
    """The first vectors of the second place's queue behind an update of the autoencoder."""
    queued_loss(method, check)
    slots: Tensor = method.network.inpaint.memories[1].slots
    return slots[: check.shape[0] + 1]


def judged_loss(method: Any, check: Check) -> Tensor:
    """The loss where a discriminator's spectral norms have settled and structures stand still."""
    settle(method.judge)
    method.texture.train()
    terms = method.loss(batch_of(check), check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def unsparing_restoration(method: Any, check: Check) -> Tensor:
    """The restoration without what makes the code sparse."""
    with torch.no_grad():
        image: Tensor = method.decoder(method.encoder.down(batch_of(check).image)[-1])
    return image


def inpainted_pixels(method: Any, check: Check) -> Tensor:
    """Fine and coarse values in a hole of 32 x 50 pixels."""
    x = batch_of(check).image
    hole = torch.zeros_like(x[:, :1])
    hole[..., 32:64, 40:90] = 1
    with torch.no_grad():
        return torch.stack(method.network(x, hole))
