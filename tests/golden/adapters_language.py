"""What the records of the vision-language systems compare beside maps and parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscan.methods.base import Batch
from normscan.methods.vision_language.concepts import fit_of
from normscan.methods.vision_language.wording import wording
from normscan.networks.towers import Tower
from normscan.rng import Rng
from tests.golden.fill import fill, images
from tests.golden.records import Check, batch_of


def tower(rule: str) -> Tower:
    """The tiny tower with the record's weights."""
    made = Tower("tiny", "random").double()
    fill(made, rule)
    return made.eval()


def told(check: Check, **how: Any) -> Tensor:
    """Directions of healthy and ill brain MRI, with the record's weights."""
    words = wording("brain MRI", medical=False)
    return tower(check.rule).told(words.ensembles("photo"), **how)


def port_told(method: Any, check: Check) -> Tensor:
    """The port's sentences aren't brought to length 1."""
    return told(check, normalised=False)


def by_words(method: Any, check: Check) -> Any:
    """Maps by the sentences, which the text tower told with its random weights before."""
    method.told = port_told(method, check)
    return method.maps(batch_of(check))


def by_words_map(method: Any, check: Check) -> Tensor:
    return by_words(method, check).map


def by_words_score(method: Any, check: Check) -> Tensor:
    return by_words(method, check).score


def inverted(check: Check, n: int) -> Batch:
    """References: the negatives of the record's images."""
    image = 1 - images(n, *check.shape[1:], rule=check.rule)
    inside = torch.ones(n, 1, *image.shape[2:], dtype=torch.bool)
    return Batch(image, inside, Rng(list(range(n))), torch.full((n,), 0.5))


def by_references(method: Any, check: Check) -> Any:
    method.fit([inverted(check, 3)])
    return by_words(method, check)


def by_references_map(method: Any, check: Check) -> Tensor:
    return by_references(method, check).map


def by_references_score(method: Any, check: Check) -> Tensor:
    return by_references(method, check).score


def concept_scores(method: Any, check: Check) -> Tensor:
    """The negative fit of given features to given sentences."""
    index = torch.arange(32).double()
    seen, said = torch.sin(0.7 * index[:24]).reshape(3, 8), torch.cos(0.3 * index).reshape(4, 8)
    seen, said = (torch.nn.functional.normalize(x, dim=1) for x in (seen, said))
    return -fit_of(seen @ said.T, method.score, method.temperature)
