"""AnomalyCLIP: sentences about any object, learnt, beside patches that look at their like."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.vision_language.common import (
    PICTURE,
    TINY,
    Trained,
    labelled_phase,
    labels_of,
    language,
    segmented,
    two_maps,
)
from normscan.methods.vision_language.learnt import LearntWords
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register


class AnomalyCLIP(Method):
    """Learnt sentences; see ``anomalyclip``.

    Args:
        tower: both towers, frozen.
        words: the sentences about a healthy and an ill object.
        layers: numbers of the blocks whose patches are compared.
        first: number of the first block with value-value attention.
        temperature: that cosines are divided by.
        map_weight: of the loss of the maps.
        training: the shared arguments.
    """

    def __init__(
        self, tower: Tower, words: LearntWords, layers: tuple[int, ...], first: int,
        temperature: float, map_weight: float, training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tower, self.words, self.layers, self.first = tower, words, layers, first
        self.temperature, self.map_weight = temperature, map_weight
        self._training = training

    def phases(self) -> list[Phase]:
        return [labelled_phase(phase(self.words, self._training, "words", "healthy+anomalous"))]

    def compared(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of each layer's patches (B, 2, h, w) and of the image (B, 2)."""
        eye = self.tower.eye
        with torch.no_grad():
            tokens, last, grid = eye.valued(image, self.layers, self.first)
            patches = [eye.joined(t[:, 1:]) for t in tokens]
            # The release leaves the last norm out here.
            whole = F.normalize(last[:, 0] @ eye.proj, dim=1)
        told = F.normalize(self.words(self.tower.tongue), dim=1)
        maps = [two_maps(p, told, self.temperature, grid) for p in patches]
        return maps, whole @ told.T / self.temperature

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        label, lesion = labels_of(batch)
        maps, logits = self.compared(batch.image)
        terms = {"image": F.cross_entropy(logits, label)}
        for layer, cosines in zip(self.layers, maps, strict=True):
            likely = F.interpolate(cosines.softmax(1)[:, 1:], lesion.shape[2:], mode="bilinear")
            terms[f"map{layer}"] = self.map_weight * segmented(likely[:, 0], lesion, both=True)
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        maps, logits = self.compared(batch.image)
        likely = torch.stack([cosines.softmax(1)[:, 1:] for cosines in maps]).sum(0)
        return Maps(likely, logits.softmax(1)[:, 1])


@register(
    "anomalyclip",
    paper="Zhou 2024",
    regime="few-anomalies",
    presets={
        "laptop": {
            "tower": "ViT-B-16", "size": 224, "layers": (12,), "valued": 7, "steps": 200,
            "postprocess": ("smooth=2",),
        },
    },
    preprocess=PICTURE,
    postprocess=("smooth=4",),
    tiny={
        **TINY, "layers": (4,), "valued": 3, "depth": 2, "steps": 60, "batch_size": 8, "lr": 2e-2,
        "temperature": 0.2, "postprocess": (),
    },
    options=language(size=518, tower="ViT-L-14-336")
    | schedule(lr=1e-3, beta1=0.5, batch_size=8, epochs=15),
)  # fmt: skip
def anomalyclip(
    dims: int = 2,
    channels: int = 1,
    layers: tuple[int, ...] = (24,),
    valued: int = 19,
    words: int = 12,
    deep_words: int = 4,
    depth: int = 9,
    temperature: float = 0.07,
    map_weight: float = 4.0,
    **options: Unpack[Trained],
) -> Method:
    """Sentences about a healthy and a damaged object whose words are learnt (AnomalyCLIP).

    Zhou et al., ICLR 2024: of "[V1]...[V12] object." and "[W1]...[W12] damaged object." the words V and
    W are learnt on images with anomalies of any kind, with 4 learnt tokens in each of the text tower's
    blocks 2 to 9, so that they speak of no object in particular. CLIP ViT-L/14 at 518 pixels stays
    frozen; the last 19 of its 24 blocks give patches of value-value attention. Softmax of cosines over
    0.07, of the image and of each patch. Loss: cross-entropy of the image + 4 times focal and Dice of
    both maps. Adam (0.5, 0.999) at 1e-3, batches of 8, 15 epochs; only the words learn. Map: the
    probability of the second sentence, Gaussian of 4 pixels.

    Train it on a cohort with masks of any kind, then ``normscan calibrate`` on healthy scans of yours.

    Departures:
        layers: the release's scripts take block 24 alone, its program's default 6, 12, 18 and 24.
        sharing: its learner holds eight linear layers that never enter; ours doesn't.
        precision: deep tokens are halved there.

    Args:
        prompts: not used: the sentences speak of an object.
        table: not used.
        layers: numbers of the blocks, from 1, whose patches are compared.
        valued: how many of the last blocks have value-value attention.
        words: learnt in front of each sentence.
        deep_words: learnt in each deeper block.
        depth: blocks of the text tower with learnt words, the first included.
        temperature: that cosines are divided by.
        map_weight: of the loss of the maps.
    """
    tower = Tower(options["tower"], options["weights"])
    tower.eye.places = "bilinear"
    blocks = tower.shape.layers
    check_layers(options["tower"], layers, blocks, "layers")
    check_layers(options["tower"], [valued], blocks, "valued")
    sentences = LearntWords(tower, ["object.", "damaged object."], words, deep_words, depth - 1)
    return AnomalyCLIP(
        tower, sentences, layers, 1 + blocks - valued, temperature, map_weight, options
    )
