"""How well an image fits a concept of what is known, by sentences alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method
from normscan.methods.vision_language.common import ALONE, TINY, Language, language
from normscan.methods.vision_language.wording import concepts_of, wording
from normscan.networks.tower_parts import Eye
from normscan.networks.towers import Tower
from normscan.registry import register

Score = Literal["mcm", "max_logit", "energy", "entropy", "variance"]


def fit_of(cosines: Tensor, score: Score, temperature: float) -> Tensor:
    """How well images fit any concept, (B, K) to (B,); higher is better.

    Args:
        cosines: to each concept.
        score: which of five.
        temperature: that cosines are divided by; not for ``max_logit``.
    """
    logits = cosines / temperature
    likely = logits.softmax(1)
    found: dict[Score, Callable[[], Tensor]] = {
        "mcm": lambda: likely.amax(1),
        "max_logit": lambda: cosines.amax(1),
        "energy": lambda: temperature * logits.logsumexp(1),
        "entropy": lambda: (likely * likely.clamp_min(1e-12).log()).sum(1),
        "variance": lambda: likely.var(1, correction=0),
    }
    return found[score]()


class Concepts(Method):
    """Scores images by what they lack of any concept; see ``mcm``."""

    told: Tensor

    def __init__(
        self, eye: Eye, told: Tensor, score: Score, temperature: float, unit_image: bool = True
    ) -> None:
        super().__init__()
        self.eye, self.score, self.temperature = eye, score, temperature
        self.unit_image = unit_image
        self.register_buffer("told", told)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        seen = self.eye.joined(self.eye.layers(batch.image, ())[1][:, 0])
        seen = F.normalize(seen, dim=1) if self.unit_image else seen
        return Maps(score=-fit_of(seen @ self.told.T, self.score, self.temperature))


@register(
    "mcm",
    paper="Ming 2022",
    regime="zero-shot",
    presets={"laptop": {"tower": "ViT-B-32"}},
    preprocess=ALONE,
    tiny=TINY,
    options=language(size=224, tower="ViT-B-16"),
)
def mcm(
    dims: int = 2,
    channels: int = 1,
    classes: tuple[str, ...] = (),
    template: str = "a photo of a {}",
    score: Score = "mcm",
    temperature: float = 1.0,
    **options: Unpack[Language],
) -> Method:
    """Maximum concept matching: how surely an image is one of the known classes, by their names.

    Ming et al., NeurIPS 2022: the cosines of a frozen CLIP's image (ViT-B/16) to "a photo of a CLASS"
    for each class of what is known, softmax without CLIP's own scale (temperature 1); an image whose
    largest probability is low is none of them. Nothing is trained, and there is no map. With one class
    the softmax says nothing: give two and more kinds of healthy images. The article compares it with
    the largest cosine (``max_logit``), ``energy``, and entropy and variance of the softmax.

    Departures:
        classes: the article has those of ImageNet; for a kind of scan they are in the table of
            prompts, our choice.
        intensities: as of ``winclip``.
        sign: negated, so that higher is more anomalous.
        resizing: by the detector's preprocessing, the picture stretched to a square; there the shorter
            side is resized to 224, bilinear, and the middle is kept.
        Mahalanobis: left out; the release indexes class means by the number of the batch.

    Args:
        classes: names of what is known; those of the table where none are given.
        template: of the sentences, with {} for the name.
        score: ``mcm``, ``max_logit``, ``energy``, ``entropy`` or ``variance``.
        temperature: that cosines are divided by.
    """
    words = wording(options["prompts"], options["table"])
    chosen = concepts_of(words, classes, options["prompts"])
    tower = Tower(options["tower"], options["weights"])
    told = tower.told([[template.format(name)] for name in chosen])
    return Concepts(tower.eye, told, score, temperature)


@register(
    "medical_vlm_ood",
    paper="Ju 2025",
    regime="zero-shot",
    presets={
        "code": {"unit_image": False},
        "laptop": {"tower": "PubMedCLIP"},
    },
    preprocess=ALONE,
    tiny=TINY,
    options=language(size=224, tower="PubMedCLIP"),
)
def medical_vlm_ood(
    dims: int = 2,
    channels: int = 1,
    classes: tuple[str, ...] = (),
    most: int | None = None,
    score: Score = "mcm",
    temperature: float = 1.0,
    unit_image: bool = True,
    **options: Unpack[Language],
) -> Method:
    """Maximum concept matching with several sentences about what is seen of each class.

    Ju et al., MICCAI 2025: hierarchical prompts for medical towers. Each known class, such as diabetic
    retinopathy, has sentences about its findings (microaneurysms, exudates, ...); its logit is the mean
    over them, and the score one minus the largest probability of the softmax over classes, as in
    ``mcm``. 1, 3, 5 and 10 sentences are compared; nothing is trained, and there is no map.

    Departures:
        towers: PubMedCLIP by default. The article's FLAIR (fundus), UniMed-CLIP (X-ray) and QuiltNet
            (histology) need weights and towers of their own; where they are CLIP's kin, give their
            file with ``weights``.
        scale: softmax of mean cosines. The notebooks differ: FLAIR's are multiplied by its learnt
            scale, UniMed-CLIP's image isn't brought to length 1 (``code``), QuiltNet's is.
        sentences: those of the table of prompts, about healthy images; the article has classes with
            and without disease.
        intensities: as of ``winclip``.

    Args:
        classes: names of what is known, each with sentences in the table or being its own sentence.
        most: sentences of a class at most; None for all.
        score: as of ``mcm``.
        temperature: that logits are divided by.
        unit_image: bring the image to length 1.
    """
    words = wording(options["prompts"], options["table"])
    chosen = concepts_of(words, classes, options["prompts"])
    sentences = [words.sentences.get(name, [name])[:most] for name in chosen]
    tower = Tower(options["tower"], options["weights"])
    told = tower.told(sentences, unit=False)
    return Concepts(tower.eye, told, score, temperature, unit_image)
