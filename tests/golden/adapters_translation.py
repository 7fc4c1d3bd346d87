"""What the records of translations between domains compare beside parameters, maps and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from normscan.methods.adversarial.separation import t_test_loss
from tests.golden.adapters_adversarial import labelled_loss
from tests.golden.adapters_compact import drawn_batch
from tests.golden.fill import images
from tests.golden.records import Check, batch_of


def undropped(method: Any, check: Check) -> Tensor:
    """The loss of four labelled images without dropout."""
    for part in method.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return labelled_loss(method, check)


def _unequal(method: Any) -> Any:
    """Weights of the translator to the other domain, and of that one's judge, times 1.5."""
    with torch.no_grad():
        for network in (method.translators[1], method.judges[1]):
            for parameter in network.parameters():
                parameter.mul_(1.5)
    return method


def cycle_loss(method: Any, check: Check) -> Tensor:
    """The loss of four labelled images with unequal translators and judges."""
    return labelled_loss(_unequal(method), check)


def settled(method: Any) -> Any:
    """Spectral norms after 50 iterations from equal numbers."""
    for part in method.modules():
        if "parametrizations" in dict(part.named_children()):
            (norm,) = part.parametrizations.weight
            norm._u.fill_(len(norm._u) ** -0.5)
            norm._v.fill_(len(norm._v) ** -0.5)
            weight = part.parametrizations.weight.original
            norm._power_method(norm._reshape_weight_to_matrix(weight), 50)
    return method


def _uneven(method: Any) -> Any:
    """Every other weight of the second networks times 1.5, and spectral norms that have settled."""
    with torch.no_grad():
        for network in (method.translators[1], method.judges[1]):
            for weight in network.parameters():
                factor = 1.0 + 0.5 * (torch.arange(weight.numel()) % 2 == 0)
                weight.mul_(factor.reshape(weight.shape))
    return settled(method)


def _box(x: Tensor, rng: Any) -> Tensor:
    corrupted = x.clone()
    corrupted[:, :, 4:10, 5:9, 3:12] += 0.1
    return corrupted


def paired_loss(method: Any, check: Check) -> Tensor:
    """The loss of two modalities, either with a box that is raised by 0.1."""
    batch = replace(batch_of(check), target=images(*check.shape))
    with patch("normscan.methods.adversarial.paired.raised", _box):
        terms = _uneven(method).loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def uneven_map(method: Any, check: Check) -> Tensor:
    """The anomaly map with uneven networks."""
    return _uneven(method).maps(batch_of(check)).map


def uneven_score(method: Any, check: Check) -> Tensor:
    """The score with uneven networks."""
    return _uneven(method).maps(batch_of(check)).score


def painted_loss(method: Any, check: Check) -> Tensor:
    """The loss of the inpainter or the critic, a box for planted holes, all draws by the rule."""

    def planted(shape: tuple[int, ...], rng: Any) -> Tensor:
        holes = torch.zeros(shape, dtype=torch.float64)
        holes[:, :, 10:16, 12:20] = 1
        return holes

    settled(method).train().critic.eval()
    with patch("normscan.methods.adversarial.inpainted.spots", planted):
        terms = method.loss(drawn_batch(check), check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


def t_test(method: Any, check: Check) -> Tensor:
    """The loss of four residuals, two of them with a lesion."""
    lesion = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    lesion[1, :, 3:9, 4:12] = True
    lesion[2, :, 10:20, 5:9] = True
    terms = t_test_loss(images(*check.shape, rule=check.rule), lesion, method.counted)
    return sum(terms.values()).reshape(1)


def separated_residual(method: Any, check: Check) -> Tensor:
    """|image - separated image|."""
    x = images(*check.shape, rule=check.rule)
    with torch.no_grad():
        return (x - method.separator(x)).abs()
