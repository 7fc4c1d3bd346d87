"""WinCLIP: windows of patches beside sentences about healthy and ill objects, and references."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.vision_language.common import (
    ALONE,
    PICTURE,
    TINY,
    Language,
    abnormal,
    as_map,
    language,
    matched,
    stacked,
)
from normscan.methods.vision_language.wording import wording
from normscan.networks.tower_parts import Eye
from normscan.networks.towers import Tower, check_layers, shape_of
from normscan.registry import register
from normscan.signatures import Options


def windows(grid: tuple[int, int], side: int) -> Tensor:
    """Numbers (W, side * side) of the patches in each window, which moves by one patch."""
    numbers = torch.arange(grid[0] * grid[1]).reshape(grid)
    side_h, side_w = min(side, grid[0]), min(side, grid[1])
    return numbers.unfold(0, side_h, 1).unfold(1, side_w, 1).reshape(-1, side_h * side_w)


def harmonic(scores: Tensor, places: Tensor, patches: int) -> Tensor:
    """Harmonic mean of the scores of all windows over each patch.

    Args:
        scores: (B, W), above 0.
        places: (W, n) numbers of the patches in each window.
        patches: number of patches.

    Returns:
        (B, patches); 0 where a score is 0.
    """
    inside = torch.zeros(len(places), patches, dtype=torch.float64, device=scores.device)
    inside.scatter_(1, places.to(scores.device), 1.0)
    inverse = 1 / scores.double().clamp_min(1e-300)  # infinity times 0 would be no number
    return (inside.sum(0) / (inverse @ inside)).to(scores.dtype)


class Windowed(nn.Module):
    """What the image tower says of windows, of patches and of the whole image, frozen.

    Args:
        eye: the image tower.
        sides: patches along each side of the windows of each scale.
        layer: number of the block whose patches are compared with references.
    """

    def __init__(self, eye: Eye, sides: tuple[int, ...], layer: int) -> None:
        super().__init__()
        self.eye, self.sides, self.layer = eye, sides, layer

    @torch.no_grad()
    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor, Tensor, tuple[int, int]]:
        """Each scale's windows (B, W, joint), patches (B, h w, width), image (B, joint), grid.

        A window is an image of its own: the tower sees the class token and the window's patches,
        each at its place, and nothing else.
        """
        x, grid = self.eye.enter(image)
        found = []
        for side in self.sides:
            places = windows(grid, side).to(x.device)
            inside = x[:, 1:][:, places]  # (B, W, n, width)
            first = x[:, :1, None].expand(-1, len(places), -1, -1)
            tokens = torch.cat([first, inside], 2).flatten(0, 1)
            seen = self.eye.transformer(tokens)[:, 0]
            found.append(self.eye.joined(seen).unflatten(0, (len(x), len(places))))
        kept: dict[int, Tensor] = {}

        def keep(i: int, tokens: Tensor) -> Tensor:
            if i == self.layer:
                kept[i] = tokens[:, 1:]
            return tokens

        whole = self.eye.joined(self.eye.transformer(x, keep)[:, 0])
        return found, kept[self.layer], whole, grid


class WinCLIP(Method):
    """Zero-shot; see ``winclip``."""

    told: Tensor

    def __init__(self, seen: Windowed, told: Tensor, temperature: float) -> None:
        super().__init__()
        self.seen, self.temperature = seen, temperature
        self.register_buffer("told", told)

    def by_words(
        self, found: list[Tensor], whole: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Map (B, h w) and score (B,) by the sentences alone."""
        score = abnormal(whole, self.told, self.temperature)
        inverse = 1 / score[:, None]
        for side, features in zip(self.seen.sides, found, strict=True):
            likely = abnormal(features, self.told, self.temperature)
            inverse = inverse + 1 / harmonic(likely, windows(grid, side), grid[0] * grid[1])
        return (1 + len(found)) / inverse, score

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found, _, whole, grid = self.seen(batch.image)
        values, score = self.by_words(found, whole, grid)
        return Maps(as_map(values, grid), score)


class WinCLIPPlus(WinCLIP):
    """Few-shot; see ``winclip_plus``."""

    bank: Tensor
    patches: Tensor

    def __init__(self, seen: Windowed, told: Tensor, temperature: float) -> None:
        super().__init__(seen, told, temperature)
        # Something to look at before it is fitted.
        for i in range(len(seen.sides)):
            self.register_buffer(f"windows{i}", torch.ones(1, told.shape[1]))
        self.register_buffer("patches", torch.ones(1, seen.eye.conv1.out_channels))

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep windows and patches of the references."""
        banks: list[list[Tensor]] = [[] for _ in (*self.seen.sides, self.patches)]
        for batch in batches:
            found, patches, _, _ = self.seen(batch.image)
            for bank, features in zip(banks, [*found, patches], strict=True):
                bank.append(features)
        for i, bank in enumerate(banks[:-1]):
            setattr(self, f"windows{i}", stacked(bank))
        self.patches = stacked(banks[-1])

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found, patches, whole, grid = self.seen(batch.image)
        values, score = self.by_words(found, whole, grid)
        scales = [matched(patches, self.patches)]
        for i, (side, features) in enumerate(zip(self.seen.sides, found, strict=True)):
            # A window of a reference itself is at distance 0, which has no inverse.
            away = matched(features, getattr(self, f"windows{i}")).clamp_min(1e-9)
            scales.append(harmonic(away, windows(grid, side), grid[0] * grid[1]))
        unlike = torch.stack(scales).mean(0)
        return Maps(as_map(values + unlike, grid), (score + unlike.amax(1)) / 2)


class Windows(Language):
    """The arguments of ``language`` and those that both forms of WinCLIP share."""

    temperature: float
    medical: bool
    sides: tuple[int, ...]
    unit_sentences: bool


_shared = Options(
    {"temperature": float, "medical": bool, "sides": tuple[int, ...], "unit_sentences": bool},
    {"temperature": 0.01, "medical": False, "sides": (2, 3), "unit_sentences": True},
    {
        "temperature": "that cosines are divided by.",
        "medical": "add the states that the table of prompts has for the kind of scan.",
        "sides": "patches along each side of the windows.",
        "unit_sentences": "bring each sentence to length 1 before their mean.",
    },
)
WINDOWS = language | _shared


def _parts(options: Windows, layer: int) -> dict[str, Any]:
    depth = shape_of(options["tower"]).layers
    check_layers(options["tower"], [layer or depth], depth, "layer")
    tower = Tower(options["tower"], options["weights"])
    words = wording(options["prompts"], options["table"], options["medical"])
    return {
        "seen": Windowed(tower.eye, options["sides"], layer or depth),
        "told": tower.told(words.ensembles("photo"), options["unit_sentences"]),
        "temperature": options["temperature"],
    }


_LAPTOP = {"tower": "ViT-B-32", "size": 224, "sides": (2, 3)}
_TINY = {**TINY, "temperature": 0.1}
_PORT = {"temperature": 0.07, "unit_sentences": False}


@register(
    "winclip",
    paper="Jeong 2023",
    regime="zero-shot",
    presets={"code": _PORT, "laptop": _LAPTOP, "medical": {"medical": True}},
    preprocess=ALONE,
    tiny=_TINY,
    options=WINDOWS,
)
def winclip(dims: int = 2, channels: int = 1, **options: Unpack[Windows]) -> Method:
    """Windows of an image beside sentences about healthy and ill objects; nothing is trained.

    Jeong et al., CVPR 2023: a frozen CLIP ViT-B/16+ (240 pixels, LAION-400M) sees the whole image and
    each window of 2 x 2 and of 3 x 3 patches, as if the rest weren't there. Each is compared with the
    mean of 154 sentences about a healthy object (7 states in 22 templates) and of 88 about a damaged
    one; the softmax of both cosines is how likely it is ill. A patch takes the harmonic mean over the
    windows that cover it, and the map the harmonic mean over both sizes of window and the whole image,
    whose own value is the image score.

    Departures:
        code: there is no release of the authors. ``code`` is the port that comes nearest to the
            article's figures (Accurate-WinCLIP): cosines divided by 0.07, sentences not brought to
            length 1. It has 21 templates, one of them twice; ours are the article's 22.
        intensities: each scan's 99th percentile is 1, since there may be no healthy scans that tell
            the range of the files.
        enlarging: the map is left at the grid of patches; the detector enlarges it.
    """
    return WinCLIP(**_parts(options, 0))


@register(
    "winclip_plus",
    paper="Jeong 2023",
    regime="few-shot",
    presets={
        "code": {**_PORT, "layer": 12},
        "laptop": {**_LAPTOP, "layer": 11},
        "medical": {"medical": True},
    },
    preprocess=PICTURE,
    tiny={**_TINY, "layer": 3, "shots": 8},
    options=WINDOWS,
)
def winclip_plus(
    dims: int = 2, channels: int = 1, shots: int = 4, layer: int = 11, **options: Unpack[Windows]
) -> Method:
    """WinCLIP with a few healthy references, whose windows and patches it remembers (WinCLIP+).

    Jeong et al., CVPR 2023: to the map of ``winclip`` comes how unlike the references an image is,
    half of one minus the cosine to the nearest, of windows of 2 x 2 and 3 x 3 patches (harmonic mean
    over the windows that cover a patch) and of the patches of the last block but one; the mean of the
    three. The image score is the mean of the zero-shot score and of this map's maximum. The references
    are 1, 2 or 4 healthy images in the article.

    Departures:
        code: as of ``winclip``; that port takes the patches of the last block.
        references: drawn by the seed, at most one of each subject; slices of a volume are references
            together.

    Args:
        shots: healthy references.
        layer: number of the block, from 1, whose patches are compared with those of references.
    """
    return WinCLIPPlus(**_parts(options, layer))
