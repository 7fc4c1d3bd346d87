"""What the records of the systems of several images compare beside parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from normscan.networks.sam import _model
from tests.golden.fill import RULES, images
from tests.golden.records import Check


def sam_tokens(method: Any, check: Check) -> Tensor:
    """Embeddings of the record's images, without prompts."""
    with torch.no_grad():
        found: Tensor = method.judge.sam.embedded(images(*check.shape, rule=check.rule))
    return found


def sam_masks(method: Any, check: Check) -> Tensor:
    """The first mask of each image, with the release's five tokens and given places."""
    sam, rule = method.judge.sam, RULES[check.rule]
    sam.places = rule(tuple(sam.places.shape))
    tokens = torch.cat([rule((1, sam.joint)), rule((4, sam.joint))])
    # An embedding's weight is filled by its own shape.
    scale = math.sqrt(sam.joint)
    with torch.no_grad():
        seen = sam.embedded(images(*check.shape, rule=check.rule))
        told, (enlarged,) = sam.decoded([seen], tokens / scale)
        return torch.as_tensor(sam.mask(told[:, 1], enlarged))


def sam_places(method: Any, check: Check) -> Tensor:
    """Places of the patches, with given frequencies."""
    from normscan.networks.sam import SHAPES

    model = _model(SHAPES["tiny"], method.judge.sam.encoder.image_size).double()
    frequencies = model.shared_image_embedding.positional_embedding
    with torch.no_grad():
        frequencies.copy_(RULES[check.rule](tuple(frequencies.shape)))
        return torch.as_tensor(model.get_image_wide_positional_embeddings())
