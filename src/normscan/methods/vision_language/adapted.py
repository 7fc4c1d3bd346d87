"""MVFA: adapters at several depths of the image tower, and a memory of references."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.vision_language.common import (
    PICTURE,
    TINY,
    Trained,
    drawn,
    enlarged,
    labelled_phase,
    labels_of,
    language,
    matched,
    segmented,
    two_maps,
)
from normscan.methods.vision_language.wording import wording
from normscan.networks.tower_parts import Eye
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register


class Bottleneck(nn.Module):
    """Two linear layers with leaky ReLU; what is between them is compared with sentences."""

    def __init__(self, width: int, joint: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(width, joint, bias=False), nn.LeakyReLU())
        self.up = nn.Sequential(nn.Linear(joint, width, bias=False), nn.LeakyReLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n, width) to (B, n, joint) and (B, n, width)."""
        between = self.down(x)
        return between, self.up(between)


# Radians, and shares of half the image: each support image in eleven forms.
TURNS = (-torch.pi / 8, -torch.pi / 16, torch.pi / 16, torch.pi / 8)
SHIFTS = ((0.1, 0.1), (-0.1, 0.1), (-0.1, -0.1), (0.1, -0.1))
FORMS = 1 + len(TURNS) + len(SHIFTS) + 2


def form_of(x: Tensor, number: int) -> Tensor:
    """Images (B, C, H, W) in one of eleven forms: as they are, turned, shifted or mirrored.

    What comes in from outside is mirrored.
    """
    if number == 0:
        return x
    if number > len(TURNS) + len(SHIFTS):
        return x.flip(3 if number == FORMS - 2 else 2)
    angle, (right, down) = torch.zeros(()), (0.0, 0.0)
    if number <= len(TURNS):
        angle = torch.tensor(TURNS[number - 1])
    else:
        right, down = SHIFTS[number - 1 - len(TURNS)]
    c, s = float(angle.cos()), float(angle.sin())
    moved = torch.tensor([[c, -s, right], [s, c, down]]).to(x).expand(len(x), 2, 3)
    grid = F.affine_grid(moved, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


class MVFA(Method):
    """Adapters at several depths; see ``mvfa``.

    Args:
        eye: the image tower, frozen.
        told: (2, joint) directions of healthy and ill.
        layers: numbers of the blocks behind which adapters stand.
        shots: references in the memory; 0 for none.
        score: of an image, by the map's maximum or by the adapters of detection.
        training: the shared arguments.
    """

    told: Tensor

    def __init__(
        self, eye: Eye, told: Tensor, layers: tuple[int, ...], shots: int,
        score: Literal["map", "detection"], training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eye, self.layers, self.shots, self.score = eye, layers, shots, score
        self._training = training
        width, joint = eye.proj.shape
        self.segments = nn.ModuleList(Bottleneck(width, joint) for _ in layers)
        self.detects = nn.ModuleList(Bottleneck(width, joint) for _ in layers)
        self.register_buffer("told", told)
        # Something to look at before it is fitted.
        self.register_buffer("memory", torch.ones(2, len(layers), 1, joint))

    def phases(self) -> list[Phase]:
        learnt: list[nn.Module] = [self.segments, self.detects]
        made = phase(learnt, self._training, "adapters", "healthy+anomalous")
        return [labelled_phase(made, balanced=True)]

    def seen(self, image: Tensor) -> tuple[list[Tensor], list[Tensor], tuple[int, int]]:
        """Tokens (B, 1 + h w, joint) of each layer for maps and for detection, and (h, w)."""
        segments: list[Tensor] = []
        detects: list[Tensor] = []

        def adapt(i: int, x: Tensor) -> Tensor:
            if i not in self.layers:
                return x
            number = self.layers.index(i)
            segment, one = self.segments[number](x)
            detect, two = self.detects[number](x)
            segments.append(segment)
            detects.append(detect)
            return 0.8 * x + 0.1 * one + 0.1 * two

        x, grid = self.eye.enter(image, normalised=False)
        self.eye.transformer(x, adapt)
        return segments, detects, grid

    def _likely(self, tokens: Tensor, grid: tuple[int, int], size: Iterable[int] = ()) -> Tensor:
        """Probability of ill of patches (B, h, w), or of as many pixels as ``size`` says."""
        logits = two_maps(tokens[:, 1:], self.told, 0.01, grid)
        logits = enlarged(logits, list(size)) if size else logits
        return logits.softmax(1)[:, 1]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        label, lesion = labels_of(batch)
        number = int(batch.rng.integers(0, FORMS, (len(batch), 1))[0, 0]) if self.shots else 0
        image, lesion = form_of(batch.image, number), form_of(lesion.float(), number) > 0.5
        segments, detects, grid = self.seen(image)
        # The release takes the mean probability for a logit.
        said = [self._likely(tokens, grid).mean((1, 2)) for tokens in detects]
        entropy = F.binary_cross_entropy_with_logits
        terms = {"detection": torch.stack([entropy(s, label.to(s)) for s in said]).sum()}
        maps = [self._likely(tokens, grid, lesion.shape[2:]) for tokens in segments]
        terms["maps"] = torch.stack([segmented(m, lesion) for m in maps]).sum()
        return terms

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep the tokens of the references in their eleven forms."""
        if not self.shots:
            return
        images = drawn(batches, self.shots)
        banks: list[Tensor] = []
        with torch.no_grad():
            for number in range(FORMS):
                segments, detects, _ = self.seen(form_of(images, number))
                banks.append(torch.stack([torch.stack(segments), torch.stack(detects)]))
        self.memory = torch.cat([bank.flatten(2, 3) for bank in banks], 2)

    def far(self, kind: int, tokens: list[Tensor], grid: tuple[int, int]) -> Tensor:
        """Sum over the layers of one minus the cosine to the nearest reference, (B, 1, h, w)."""
        away = [
            2 * matched(t[:, 1:], bank) for t, bank in zip(tokens, self.memory[kind], strict=True)
        ]
        return torch.stack(away).sum(0).unflatten(1, (1, *grid))

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        segments, detects, grid = self.seen(batch.image)
        size, n = batch.image.shape[2:], len(self.layers)
        found = torch.stack([self._likely(t, grid, size) for t in segments]).sum(0)[:, None] / n
        score = torch.stack([self._likely(t, grid).mean((1, 2)) for t in detects]).sum(0) / n
        if self.shots:
            found = (found + enlarged(self.far(0, segments, grid), size) / n) / 2
            score = (score + enlarged(self.far(1, detects, grid), size).mean((1, 2, 3)) / n) / 2
        return Maps(found, found.amax((1, 2, 3)) if self.score == "map" else score)


@register(
    "mvfa",
    paper="Huang 2024",
    regime="few-anomalies",
    presets={
        "zero_shot": {"shots": 0, "lr": 1e-4, "score": "detection"},
        "laptop": {
            "tower": "ViT-B-16", "size": 224, "layers": (3, 6, 9, 12), "steps": 200,
            "batch_size": 4,
        },
    },
    preprocess=PICTURE,
    tiny={**TINY, "layers": (2, 4), "steps": 60, "batch_size": 8, "lr": 5e-3},
    options=language(size=240, tower="ViT-L-14-336")
    | schedule(lr=1e-3, beta1=0.5, batch_size=1, epochs=50),
)  # fmt: skip
def mvfa(
    dims: int = 2,
    channels: int = 1,
    shots: int = 4,
    layers: tuple[int, ...] = (6, 12, 18, 24),
    score: Literal["map", "detection"] = "map",
    **options: Unpack[Trained],
) -> Method:
    """Adapters at four depths of CLIP's image tower, beside sentences and a memory (MVFA).

    Huang et al., CVPR 2024: behind blocks 6, 12, 18 and 24 of a CLIP ViT-L/14 at 240 pixels stand two
    adapters of two layers each, one for maps and one for detection (1024, 768, 1024; leaky ReLU). A
    tenth of what each gives joins the tokens, and the 768 numbers between its layers are compared with
    sentences: 7 healthy and 5 ill states in 35 templates, softmax of 100 times the cosine. Loss, over
    the four depths: binary cross-entropy of an image's mean probability, focal and Dice of its map.
    Adam (0.5, 0.999) at 1e-3, one image at a time, 50 epochs over k healthy and k anomalous images in
    eleven forms. Map: mean of that of the sentences and of one minus the cosine to the nearest token of
    the k healthy images. ``zero_shot``: trained on other data sets at 1e-4, without memory, the score
    by detection.

    Departures:
        scales: both parts of map and score are divided by the number of depths before their mean; the
            release brings each to 0..1 over the test set.
        epochs: those of the last one; the release keeps the one that is best on the test set.
        forms: each step takes one of the eleven at random; there all of them are the training set.
        logit: the mean probability is taken for one, as there.
        intensities: not normalised by CLIP's mean and deviation, as there.

    Args:
        shots: healthy references in the memory, of the training images; 0 for none and no forms.
        layers: numbers of the blocks, from 1, behind which adapters stand.
        score: of an image: the ``map``'s maximum, for data with masks, or by ``detection``.
    """
    tower = Tower(options["tower"], options["weights"])
    check_layers(options["tower"], layers, tower.shape.layers, "layers")
    words = wording(options["prompts"], options["table"], False)
    words = replace(words, ill=(*words.ill[:1], "broken {}", *words.ill[1:]))
    told = tower.told(words.ensembles("varied"))
    return MVFA(tower.eye, told, layers, shots, score, options)
