"""What the vision-language systems share: a tower, its sentences and how both are compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypedDict, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Phase
from normscan.methods.schedule import Schedule
from normscan.objectives.segmentation import focal
from normscan.signatures import Options


class Language(TypedDict):
    """The arguments of ``language``, for ``**options: Unpack[Language]`` in a signature."""

    size: int
    tower: str
    weights: str
    prompts: str
    table: str | None


class Trained(Language, Schedule):
    """The arguments of ``language`` and of ``schedule``."""


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


def two_maps(features: Tensor, told: Tensor, temperature: float, grid: tuple[int, int]) -> Tensor:
    """Cosines of patches (B, h w, D) to two directions (2, D), over a temperature: (B, 2, h, w)."""
    cosines = F.normalize(features, dim=-1) @ told.T / temperature
    return cosines.mT.unflatten(2, grid)


def enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (B, n, h, w) with as many pixels as the image, corners on corners."""
    return F.interpolate(maps, list(size), mode="bilinear", align_corners=True)


def dice(probability: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum p t + 1) / (sum p + sum t + 1) of each image, mean over the batch.

    Args:
        probability: p, (B, ...), 0 to 1.
        mask: t, likewise, bool.
    """
    p, t = probability.flatten(1), mask.flatten(1)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)).mean()


def segmented(likely: Tensor, lesion: Tensor, both: bool = False) -> Tensor:
    """Focal loss and Dice of the probability of the lesion, as the releases of this family have it.

    Args:
        likely: (B, H, W) probability of the lesion.
        lesion: (B, 1, H, W) bool.
        both: Dice of what is healthy, too.
    """
    mask = lesion[:, 0]
    loss = focal(likely, mask) + dice(likely, mask)
    return loss + dice(1 - likely, ~mask) if both else loss


def labelled_phase(phase: Phase, balanced: bool = False) -> Phase:
    """A phase that learns from labels, of which healthy validation images alone say nothing."""
    return replace(phase, validate_every=0, patience=None, keep="last", balanced=balanced)


def labels_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Labels (B,), 0 or 1, and lesions (B, 1, H, W) of a batch of training; none where none are told."""
    label = torch.zeros(len(batch)).long() if batch.label is None else batch.label.clamp_min(0)
    lesion = torch.zeros_like(batch.foreground) if batch.lesion is None else batch.lesion
    return label.to(batch.image.device).long(), lesion


def drawn(batches: Iterable[Batch], shots: int) -> Tensor:
    """Images (n, C, H, W) of some references, drawn at random from the healthy ones."""
    kept: list[tuple[float, Tensor]] = []
    for batch in batches:
        kept += zip(batch.rng.uniform((len(batch),)).tolist(), batch.image, strict=True)
        kept = sorted(kept, key=lambda pair: pair[0])[:shots]
    return torch.stack([image for _, image in kept])


def stacked(parts: list[Tensor]) -> Tensor:
    """Parts of a bank as one (N, D)."""
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
