"""What the records of the vision-language systems compare beside maps and parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscan.methods.base import Batch
from normscan.methods.vision_language.common import enlarged, segmented
from normscan.methods.vision_language.concepts import fit_of
from normscan.methods.vision_language.residual import squashed_focal
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


def sentences_score(method: Any, check: Check) -> Tensor:
    """Scores by several sentences about each concept."""
    words = wording("brain MRI")
    classes = [words.sentences[name] for name in words.concepts]
    method.told = tower(check.rule).told(classes, unit=False)
    return method.maps(batch_of(check)).score


def beside_references(method: Any, check: Check) -> Any:
    method.told = told(check)
    method.fit([inverted(check, 3)])
    return method


def residual_output(method: Any, check: Check) -> Tensor:
    return beside_references(method, check).maps(batch_of(check)).score


def image_residual(method: Any, check: Check) -> Tensor:
    """What the image residual alone says."""
    beside_references(method, check)
    _, image, _ = method.seen(batch_of(check).image)
    firsts = method.adapter(method.firsts).mean(0).expand(len(image), -1)
    return method.of_image(firsts - method.adapter(image))


def twice_squashed(method: Any, check: Check) -> Tensor:
    probability = torch.tensor([0.1, 0.4, 0.9, 0.55]).double()
    return squashed_focal(probability, torch.tensor([0, 1, 1, 0])).reshape(1)


def residual_parameters(method: Any, check: Check) -> Tensor:
    """All that is learnt, without the release's two norms that never enter."""
    parts = (method.adapter, method.of_image, method.of_map)
    return torch.tensor([float(sum(p.numel() for part in parts for p in part.parameters()))])


def labelled(check: Check) -> Batch:
    """The record's images, the second one ill where the images are above 0.9."""
    batch = batch_of(check)
    lesion = images(*check.shape, rule=check.rule) > 0.9
    return replace(batch, label=torch.tensor([0, 1]), lesion=lesion, rng=Rng(0))


def loss_of(method: Any, check: Check) -> Tensor:
    """Sum of the terms of the phase."""
    return (
        torch.stack(list(method.loss(labelled(check), check.phase, "").values())).sum().reshape(1)
    )


def words_map(method: Any, check: Check) -> Tensor:
    return method.maps(batch_of(check)).map


def words_score(method: Any, check: Check) -> Tensor:
    return method.maps(batch_of(check)).score


def image_term(method: Any, check: Check) -> Tensor:
    return method.loss(labelled(check), "", "")["image"].reshape(1)


def map_terms(method: Any, check: Check) -> Tensor:
    terms = method.loss(labelled(check), "", "")
    return torch.stack([v for k, v in terms.items() if k.startswith("map")]).sum().reshape(1)


def adapters_told(method: Any, check: Check) -> Any:
    """Directions of MVFA's sentences with the record's weights; the references in memory."""
    words = wording("brain MRI", medical=False)
    words = replace(words, ill=(*words.ill[:1], "broken {}", *words.ill[1:]))
    method.told = tower(check.rule).told(words.ensembles("varied"))
    method.fit([inverted(check, 3)])
    return method


def of_memory(method: Any, check: Check, kind: int = 0) -> Tensor:
    batch = batch_of(check)
    found = adapters_told(method, check).seen(batch.image)
    return enlarged(method.far(kind, found[kind], found[2]), batch.image.shape[2:])


def detection_of_memory(method: Any, check: Check) -> Tensor:
    return of_memory(method, check, 1).mean((1, 2, 3))


def of_sentences(method: Any, check: Check) -> Tensor:
    """The map of the sentences alone, summed over the layers."""
    adapters_told(method, check).shots = 0
    return len(method.layers) * method.maps(batch_of(check)).map


def detection_of_sentences(method: Any, check: Check) -> Tensor:
    adapters_told(method, check).shots, method.score = 0, "detection"
    return len(method.layers) * method.maps(batch_of(check)).score


def adapters_loss(method: Any, check: Check) -> Tensor:
    """One image at a time, as there; none of the forms."""
    adapters_told(method, check).shots = 0
    return loss_of(method, check)


def learnt_told(method: Any, check: Check) -> Tensor:
    return method.told()


def patches_told(method: Any, check: Check) -> Tensor:
    return method.told()[1]


def still_loss(method: Any, check: Check) -> Tensor:
    """AA-CLIP's terms of a phase on images that neither move nor change their colours."""
    batch = labelled(check)
    image = batch.image.expand(-1, 3, -1, -1)
    if check.phase == "text":
        terms = method.text_loss(image, batch.lesion)
    else:
        terms = method.image_loss(image, batch.label, batch.lesion)
    return torch.stack(list(terms.values())).sum().reshape(1)


def with_memory_map(method: Any, check: Check) -> Tensor:
    method.fit([inverted(check, 3)])
    return method.maps(batch_of(check)).map


def planted_loss(method: Any, check: Check) -> Tensor:
    """MediCLIP's loss of given masks, nothing planted."""
    batch = labelled(check)
    return segmented(method.likely(batch.image), batch.lesion).reshape(1)
