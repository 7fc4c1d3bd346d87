"""What the records of the flows compare beside parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from normscan.methods.base import Method
from normscan.networks.flows import ActNorm, Permutation, Rotation
from normscan.networks.implicit import coordinates
from normscan.networks.pyramid_flow import ChannelMixing
from normscan.rng import Rng
from tests.golden.fill import grain
from tests.golden.records import RUNS, Check, batch_of


@torch.no_grad()
def settle(module: nn.Module) -> None:
    """Give what is drawn at random a rule of its own, and scales near 1 in place of near 0.

    The releases' blocks were changed in the same way.
    """
    for part in module.modules():
        if isinstance(part, ActNorm):
            part.scale += ActNorm(1, 0).scale.item()
        elif isinstance(part, Permutation):
            part.order.copy_(grain((len(part.order),)).argsort())
        elif isinstance(part, Rotation):
            q, r = torch.linalg.qr(grain(tuple(part.matrix.shape)))
            part.matrix.copy_(q * r.diagonal().sign())


def learnt_parameters(method: Method, check: Check) -> Tensor:
    """Of what isn't frozen."""
    return torch.tensor([float(sum(p.numel() for p in method.parameters() if p.requires_grad))])


def settled_map(method: Method, check: Check) -> Tensor:
    settle(method)
    return RUNS["map"](method, check)


def settled_score(method: Method, check: Check) -> Tensor:
    settle(method)
    return RUNS["score"](method, check)


def settled_loss(method: Any, check: Check) -> Tensor:
    """The loss in evaluation mode: of all places, of images that aren't turned."""
    settle(method)
    batch = replace(batch_of(check), rng=Rng(0))
    with torch.no_grad():
        return sum(method.loss(batch, check.phase, check.player).values()).reshape(1)


def fitted_map(method: Any, check: Check) -> Tensor:
    """The map of the images that the closed form saw."""
    settle(method)
    batch = batch_of(check)
    method.fit([batch])
    return method.maps(batch).map


def training_loss(method: Method, check: Check) -> Tensor:
    settle(method)
    return RUNS["loss"](method, check)


def restoration(method: Method, check: Check) -> Tensor:
    """In -1..1."""
    settle(method)
    restored = method.maps(batch_of(check)).reconstruction
    assert restored is not None
    return 2 * restored - 1


@torch.no_grad()
def settle_pyramid(method: Any, check: Check) -> None:
    """What is drawn at random by a rule; weights of the spread as of a convolution."""
    for part in method.modules():
        if isinstance(part, ChannelMixing):
            number = len(part.size)
            part.order.copy_(torch.eye(number)[grain((number,)).argsort()])
            part.sign.copy_(grain((number,)).sign())
    matrix = method.encoder.matrix
    matrix.copy_(grain((*matrix.shape, 1, 1))[..., 0, 0] / matrix.shape[1] ** 0.5)


def pyramid_loss(method: Any, check: Check) -> Tensor:
    settle_pyramid(method, check)
    return RUNS["loss"](method, check)


def template_map(method: Any, check: Check) -> Tensor:
    """The map behind one look in training, of the images that the template is the mean of."""
    pyramid_loss(method, check)
    method.eval()
    batch = batch_of(check)
    method.fit([batch])
    return method.maps(batch).map


@torch.no_grad()
def settle_field(method: Any, check: Check) -> Tensor:
    """Levels from 0.05 to 0.95, filters longer by 2, and codes (B, latent) by the rule."""
    for layer in method.field.layers:
        layer.parametrizations.weight.original0 += 2
    method.levels.copy_(torch.linspace(0.05, 0.95, 10, dtype=torch.float64))
    return grain((check.shape[0], method.latent)) / method.latent**0.5


def field_logits(method: Any, check: Check) -> Tensor:
    """Of every 7919th voxel of the first image."""
    code = settle_field(method, check)
    flat = torch.arange(200) * 7919 % 12**3
    with torch.no_grad():
        return method.field(code[:1], coordinates(flat, (12, 12, 12)).double()[None])


def field_loss(method: Any, check: Check) -> Tensor:
    """On every 7919th voxel, in the first pass, without dropout."""
    code = settle_field(method, check)
    method.codes.double().grow(code)
    batch = replace(batch_of(check), index=torch.arange(len(code)))
    method._places = lambda batch, number: (torch.arange(2 * number) * 7919 % 12**3).reshape(2, -1)
    return sum(method.loss(batch, "field", "field").values()).detach().reshape(1)


def field_map(method: Any, check: Check) -> Tensor:
    """Under those codes in place of searched ones."""
    code = settle_field(method, check)
    method.searched = lambda batch: code
    return RUNS["map"](method, check)
