"""What the vision-language systems share: a tower, its sentences and how both are compared."""

from __future__ import annotations

from typing import Any, TypedDict, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.signatures import Options


class Language(TypedDict):
    """The arguments of ``language``, for ``**options: Unpack[Language]`` in a signature."""

    size: int
    tower: str
    weights: str
    prompts: str
    table: str | None


language = Options(
    get_type_hints(Language),
    {
        "size": 240,
        "tower": "ViT-B-16-plus-240",
        "weights": "hub",
        "prompts": "brain MRI",
        "table": None,
    },
    {
        "dims": "spatial axes, 2.",
        "size": "pixels along each axis; sides that are no whole patches are resized down to such.",
        "tower": "name of CLIP's towers, such as ViT-B-16-plus-240, ViT-L-14-336 or PubMedCLIP.",
        "weights": "``hub``, ``random``, or the path of a state dict of open_clip or transformers "
        "with ``vocab.json`` and ``merges.txt`` beside it, or of a folder with these.",
        "prompts": "kind of scan in the table of prompts, or any object in words.",
        "table": "TOML file of your own, whose entries come before those of ``prompts.toml``.",
    },
)

# The whole picture over the range of the files, as the releases take it; without healthy scans that
# tell it, each scan's own.
PICTURE: dict[str, Any] = {"scaling": "file", "crop": "none", "fit": "stretch"}
ALONE: dict[str, Any] = {**PICTURE, "scaling": "percentile"}
TINY: dict[str, Any] = {"tower": "tiny", "weights": "random", "size": 32}


def abnormal(features: Tensor, told: Tensor, temperature: float) -> Tensor:
    """Probability of the second of two directions.

    Args:
        features: (..., D).
        told: (2, D) of length 1, healthy and ill.
        temperature: that cosines are divided by.
    """
    cosines = F.normalize(features, dim=-1) @ told.T / temperature
    return cosines.softmax(-1)[..., 1]


def matched(features: Tensor, bank: Tensor) -> Tensor:
    """Half of one minus the cosine to the nearest of a bank, (..., D) to (...).

    Args:
        features: of any length.
        bank: (N, D), likewise.
    """
    cosines = F.normalize(features, dim=-1) @ F.normalize(bank, dim=-1).T
    return (1 - cosines.amax(-1)) / 2


def as_map(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values (B, h w) of patches as a map (B, 1, h, w)."""
    return values.unflatten(1, (1, *grid))


def stacked(parts: list[Tensor]) -> Tensor:
    """Parts of a bank as one (N, D)."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
