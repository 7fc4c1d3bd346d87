"""What the records of systems that retrieve healthy images compare beside parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscan.methods.features.retrieved import Pairs, hinges, joined, weighed
from normscan.scores.retrieval import BlockWords
from tests.golden.fill import grain
from tests.golden.records import Check, batch_of


def stages(first: int, n: int = 2) -> list[Tensor]:
    """What a network would say of so many images, in its stead."""
    return [grain((first + n, c, s, s))[first:] for c, s in ((64, 10), (128, 5))]


def _branches(method: Any) -> list[Tensor]:
    return [f.detach() for f in method.compared(stages(0))]


def coarse_and_fine(method: Any, check: Check) -> list[Tensor]:
    return _branches(method)


def _pairs() -> tuple[Pairs, Pairs, Pairs]:
    """Pairs of a place, apart and changed, some of which aren't there."""
    near, apart, spoilt = (0.9 * grain((6, 7, 2))[i : i + 2] for i in (0, 2, 4))
    here, off, bad = torch.ones(3, 2, 7).double()
    here[1, 5:], off[0, 6:], bad[1, 2:] = 0, 0, 0
    return Pairs(near, near, here), Pairs(apart, near, off), Pairs(spoilt, spoilt, bad)


def far(method: Any, check: Check) -> Tensor:
    """The loss of pairs that don't belong together, summed over both scales."""
    together, apart, spoilt = _pairs()
    own, other = stages(0), stages(3)
    terms = []
    for branch, x, y in zip(method.local, own, other, strict=True):
        pairs = joined(weighed(x, y, apart), spoilt)
        terms.append(hinges(branch(x), branch(y), together, pairs)[1])
    return torch.stack(terms).sum().detach().reshape(1)


def both_hinges(method: Any, check: Check) -> Tensor:
    """Of features and the same with their channels backwards."""
    together, apart, _ = _pairs()
    x = stages(0)[0]
    return torch.stack(hinges(x, x.flip(1), together, apart))


def _words() -> BlockWords:
    words = BlockWords(6, 12, 5).double()
    words.words = grain((12, 6))
    words.bank = words.histograms(grain((9, 6, 10, 10)))
    return words


def histograms(method: Any, check: Check) -> Tensor:
    return _words().histograms(grain((11, 6, 10, 10))[9:])


def retrieved(method: Any, check: Check) -> Tensor:
    return _words().nearest(grain((11, 6, 10, 10))[9:], 4).double()


def map_of_retrieved(method: Any, check: Check) -> Tensor:
    """With four stored images, all of which are looked at."""
    method.frozen = lambda image: stages(0)
    for scale, found in enumerate(method.compared(stages(3, 4))):
        setattr(method, f"stored_{scale}", torch.nn.functional.normalize(found.detach(), dim=1))
    method.words.words = grain((12, 64))
    method.words.bank = method.words.histograms(stages(3, 4)[0])
    return method.maps(batch_of(check)).map
