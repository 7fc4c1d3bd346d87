"""What the records of the autoencoders compare beside maps, losses and parameters."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from normscan.methods.base import Batch, Method
from normscan.networks.memory import Memory
from tests.golden.fill import fill, images, wave
from tests.golden.records import Check, batch_of


class Drawn:
    """Stands for ``Rng``: the releases drew the same numbers by the rule of the records."""

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return wave(tuple(shape)).float()


def drawn_batch(check: Check) -> Batch:
    batch = batch_of(check)
    batch.rng = Drawn()  # type: ignore[assignment]
    return batch


def _pair(check: Check) -> tuple[Tensor, Tensor]:
    """An image and what stands for its restoration, brighter and darker in places."""
    x = images(*check.shape)
    return x, 1.25 * x.flip(-1) ** 2


# --- the family of Cai


def centred_forward(method: Any, check: Check) -> Tensor:
    with torch.no_grad():
        x = method.scaled(batch_of(check)).image
        return method.network(x)


def mean_score(method: Method, check: Check) -> Tensor:
    """The mean of the map, which is what the cards of the family reduce it by."""
    assert method.card.reduction == "mean"
    return method.maps(batch_of(check)).map.flatten(1).mean(1)


def _one_layer_for_both_heads(method: Any) -> None:
    """The release has one linear layer for mean and log variance, which the rule fills as one."""
    mean, spread = method.network.heads
    whole = torch.nn.Linear(mean.in_features, 2 * mean.out_features)
    fill(whole)
    with torch.no_grad():
        for head, weight, bias in zip(
            (mean, spread), whole.weight.chunk(2), whole.bias.chunk(2), strict=True
        ):
            head.weight.copy_(weight)
            head.bias.copy_(bias)


def drawn_map(method: Method, check: Check) -> Tensor:
    _one_layer_for_both_heads(method)
    return method.maps(drawn_batch(check)).map


def drawn_score(method: Method, check: Check) -> Tensor:
    return drawn_map(method, check).flatten(1).mean(1)


def drawn_loss(method: Method, check: Check) -> Tensor:
    _one_layer_for_both_heads(method)
    terms = method.train().loss(drawn_batch(check), "", "")
    return sum(terms.values()).detach().reshape(1)


def _norm_after_a_loss(method: Any, check: Check, part: str, number: int) -> Tensor:
    method.train().loss(batch_of(check), "", "")
    return getattr(method.network, part)[number].running_mean


def encoder_statistics(method: Method, check: Check) -> Tensor:
    return _norm_after_a_loss(method, check, "encoder", 1)


def decoder_statistics(method: Method, check: Check) -> Tensor:
    return _norm_after_a_loss(method, check, "decoder", 1)


def memory(method: Any, check: Check) -> Tensor:
    """The memory alone, with a threshold at which weights are cut."""
    held: Memory = method.network.memory
    return torch.cat(held((2 * wave((4, 16))).float().double()), dim=1)


def _standardised(method: Any) -> None:
    statistics = method.distance.statistics
    index = torch.arange(statistics.mean.numel(), dtype=torch.float64).reshape(1, -1, 1, 1)
    statistics.given = True
    statistics.mean = 0.1 * torch.sin(index)
    statistics.square = 1 + 0.1 * torch.cos(index) + statistics.mean.square()


def perceptual_map(method: Method, check: Check) -> Tensor:
    _standardised(method)
    return method.maps(batch_of(check)).map


def perceptual_loss(method: Method, check: Check) -> Tensor:
    _standardised(method)
    return sum(method.train().loss(batch_of(check), "", "").values()).detach().reshape(1)


# --- what stands on two levels of codes


def _with_codebooks(method: Any) -> None:
    for level in (method.network.quantise_top, method.network.quantise_bottom):
        level.codebook.copy_(wave(tuple(level.codebook.shape)))
        level.sums.copy_(level.codebook)


def quantised_map(method: Method, check: Check) -> Tensor:
    _with_codebooks(method)
    return method.maps(batch_of(check)).map


def quantised_loss(method: Method, check: Check) -> Tensor:
    _with_codebooks(method)
    return sum(method.train().loss(batch_of(check), "", "").values()).detach().reshape(1)


# --- intensity


def equalised(method: Method, check: Check) -> Tensor:
    """A volume of stored values up to 70, a part of it background."""
    image = (90 * images(1, 1, 8, 9, 7) - 20).clamp_min(0)
    batch = batch_of(Check("", "", [], shape=[1, 1, 8, 9, 7]))
    batch.image = image
    return method.maps(batch).map


# --- formulas of releases that can't run


def residual_of_a_pair(method: Any, check: Check) -> Tensor:
    residual = getattr(method, "residual", None) or method._residual
    return residual(*_pair(check))


def loss_of_a_pair(method: Any, check: Check) -> Tensor:
    x, restored = _pair(check)
    batch = batch_of(check)
    batch.image = x
    return sum(method._loss(restored, batch).values()).reshape(1)


def game_of_a_pair(method: Any, check: Check) -> Tensor:
    """The autoencoder's loss where codes and restoration are given."""
    batch = batch_of(check)
    x, restored = _pair(check)
    batch.image = x
    codes = iter([wave((len(x), 8)).float(), 0.5 * wave((len(x), 8)).float()])
    with (
        patch.object(method.network, "encode", lambda _: [next(codes)]),
        patch.object(method.network, "decode", lambda _: restored),
    ):
        return sum(method.loss(batch, "constrain", "autoencoder").values()).reshape(1)


def divergence(method: Any, check: Check) -> Tensor:
    """The divergence of codes with this mean and raw second head."""
    batch = drawn_batch(check)
    heads = [wave((2, 8)).float(), 0.5 * wave((2, 8)).float().flip(1)]
    with (
        patch.object(method.network, "encode", lambda _: heads),
        patch.object(method.network, "decode", lambda _: batch.image),
    ):
        return method.loss(batch, "", "")["kl"].reshape(1)


def encoder_parameters(method: Any, check: Check) -> Tensor:
    """Parameters of the encoder with its heads."""
    network = method.network
    parts = [*network.encoder.parameters(), *network.heads.parameters()]
    return torch.tensor([float(sum(p.numel() for p in parts))])
