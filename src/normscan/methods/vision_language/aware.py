"""AA-CLIP: the text tower learns to tell healthy from ill, then the image tower to look for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import phase, settings
from normscan.methods.vision_language.common import (
    PICTURE,
    TINY,
    Language,
    enlarged,
    labelled_phase,
    labels_of,
    language,
    segmented,
    two_maps,
)
from normscan.methods.vision_language.wording import wording
from normscan.networks.stable import CLIP_MEAN, colours
from normscan.networks.tower_parts import ended
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register
from normscan.rng import Rng
from normscan.signatures import Options
from normscan.synthesis.blur import gaussian_blur
from normscan.synthesis.draws import between, rotations, spread_out, taken_from

HEALTHY = ("{}", "a {}", "the {}")
ILL = ("a damaged {}", "a broken {}", "a {} with flaw", "a {} with defect", "a {} with damage")


class Leaky(nn.Sequential):
    """A linear layer without offset and leaky ReLU, drawn as Xavier's uniform."""

    def __init__(self, width: int, to: int) -> None:
        layer = nn.Linear(width, to, bias=False)
        nn.init.xavier_uniform_(layer.weight)
        super().__init__(layer, nn.LeakyReLU())


def blended(x: Tensor, adapter: nn.Module, share: float) -> Tensor:
    """Tokens with a share of what an adapter makes of them, as long as they are."""
    new = adapter(x)
    new = new * x.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return share * new + (1 - share) * x


def moved(image: Tensor, lesion: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Images and lesions turned by up to 30 degrees, shifted by up to 15 % and mirrored.

    Each with probability 0.5, by itself. What comes in from outside is CLIP's mean colour.
    """
    n, size = len(image), torch.tensor(image.shape[2:]).float()
    mean = torch.tensor(CLIP_MEAN).to(image).reshape(1, 3, 1, 1)
    middle = ((size - 1) / 2).expand(n, -1)
    coins = rng.uniform((n, 4)) < 0.5
    turn = torch.where(coins[:, :1, None], rotations(rng, n, 2, torch.pi / 6), torch.eye(2))
    shift = coins[:, 1:2] * between(rng, (n, 2), -0.15, 0.15) * size
    both = torch.cat([colours(image) - mean, lesion.to(image)], 1)
    # The border goes on beyond itself, so one of zeros is put around.
    padded = F.pad(both, (1, 1, 1, 1))
    found = taken_from(padded, middle + 1 + shift, middle + 1, matrix=turn)[..., 1:-1, 1:-1]
    for axis in (2, 3):
        flip = coins[:, axis].to(image.device).reshape(-1, 1, 1, 1)
        found = torch.where(flip, found.flip(axis), found)
    return found[:, :3] + mean, found[:, 3:4] > 0.5


def recoloured(x: Tensor, rng: Rng) -> Tensor:
    """Brightness, contrast and saturation times 0.5 to 1.5, each with probability 0.7."""

    def factor() -> Tensor:
        drawn = between(rng, (len(x), 1), 0.5, 1.5)
        on = rng.uniform((len(x), 1)) < 0.7
        return spread_out(torch.where(on, drawn, torch.ones(())), 2).to(x)

    weights = torch.tensor([0.2989, 0.587, 0.114]).to(x).reshape(1, 3, 1, 1)
    x = (x * factor()).clamp(0, 1)
    mean = (x * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    x = (mean + factor() * (x - mean)).clamp(0, 1)
    grey = (x * weights).sum(1, keepdim=True)
    return (grey + factor() * (x - grey)).clamp(0, 1)


class AACLIP(Method):
    """Adapters of both towers; see ``aa_clip``.

    Args:
        tower: both towers, frozen.
        sentences: about healthy and ill objects.
        layers: numbers of the blocks whose patches are compared.
        until: blocks with adapters in the text and in the image tower.
        first: number of the first block with value-value attention, in the first phase.
        training: rates, batches and lengths of both phases.
    """

    healthy: Tensor
    ill: Tensor

    def __init__(
        self, tower: Tower, sentences: list[list[str]], layers: tuple[int, ...],
        until: tuple[int, int], first: int, training: Stages,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tower, self.layers, self.first, self._training = tower, layers, first, training
        shape, words = tower.shape, tower.tongue.token_embedding.embedding_dim
        self.text = nn.ModuleList(Leaky(words, words) for _ in range(until[0]))
        self.text.append(Leaky(words, shape.joint))
        self.image = nn.ModuleList(Leaky(shape.width, shape.width) for _ in range(until[1]))
        self.segments = nn.ModuleList(
            nn.Linear(shape.width, shape.joint, bias=False) for _ in layers
        )
        self.detects = nn.Linear(shape.width, shape.joint, bias=False)
        for layer in (*self.segments, self.detects):
            nn.init.xavier_uniform_(layer.weight)
        self.register_buffer("healthy", tower.ids(sentences[0]))
        self.register_buffer("ill", tower.ids(sentences[1]))

    def phases(self) -> list[Phase]:
        t = self._training
        first = settings(
            lr=t["text_lr"], beta1=0.5, batch_size=t["text_batch"],
            epochs=t["text_epochs"], steps=t["text_steps"],
        )  # fmt: skip
        second = settings(
            lr=t["image_lr"], beta1=0.5, batch_size=t["image_batch"],
            epochs=t["image_epochs"], steps=t["image_steps"],
        )  # fmt: skip
        learnt: list[nn.Module] = [self.image, self.segments, self.detects]
        part = "healthy+anomalous"
        return [
            labelled_phase(phase(self.text, first, "text", part)),
            labelled_phase(phase(learnt, second, "image", part, rhythm=halved)),
        ]

    def told(self) -> Tensor:
        """Directions (2, joint) of healthy and ill by the adapted text tower."""

        def adapt(i: int, x: Tensor) -> Tensor:
            return blended(x, self.text[i - 1], 0.1) if 1 <= i < len(self.text) else x

        found = []
        for ids in (self.healthy, self.ill):
            states = self.tower.tongue.states(ids, between=adapt)
            features = F.normalize(self.text[-1](ended(states, ids)), dim=1)
            found.append(F.normalize(features.mean(0), dim=0))
        return torch.stack(found)

    def seen(self, image: Tensor) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Patches (B, h w, joint) of each layer, the image (B, joint) for detection, and (h, w)."""
        kept: list[Tensor] = []

        def adapt(i: int, x: Tensor) -> Tensor:
            x = blended(x, self.image[i - 1], 0.1) if 1 <= i <= len(self.image) else x
            if i in self.layers:
                kept.append(x[:, 1:])
            return x

        eye = self.tower.eye
        x, grid = eye.enter(image)
        eye.transformer(x, adapt)
        tokens = [eye.ln_post(x) for x in kept]
        patches = [F.normalize(s(t), dim=2) for s, t in zip(self.segments, tokens, strict=True)]
        return patches, F.normalize(self.detects(tokens[-1]), dim=2).mean(1), grid

    def text_loss(self, image: Tensor, lesion: Tensor) -> dict[str, Tensor]:
        """The first phase: sentences beside the frozen image tower."""
        eye, told = self.tower.eye, self.told()
        with torch.no_grad():
            (tokens,), last, grid = eye.valued(image, self.layers[-1:], self.first, fed=True)
            whole = F.normalize(eye.joined(last[:, :1]), dim=2)
            patches = F.normalize(eye.joined(tokens[:, 1:]), dim=2) + whole
        # Not brought to length 1 again.
        logits = (100 * patches @ told.T).mT.unflatten(2, grid)
        likely = enlarged(logits, lesion.shape[2:]).softmax(1)[:, 1]
        apart = 0.1 * (told[0] @ told[1]).square()
        return {"map": segmented(likely, lesion, both=True), "apart": apart}

    def image_loss(self, image: Tensor, label: Tensor, lesion: Tensor) -> dict[str, Tensor]:
        """The second phase: patches beside the learnt sentences."""
        with torch.no_grad():
            told = self.told()
        patches, detected, grid = self.seen(image)
        terms = {"image": F.cross_entropy(detected @ told.T, label)}
        for layer, patch in zip(self.layers, patches, strict=True):
            logits = two_maps(patch, told, 0.01, grid)
            likely = enlarged(logits, lesion.shape[2:]).softmax(1)[:, 1]
            terms[f"map{layer}"] = segmented(likely, lesion, both=True)
        return terms

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        label, lesion = labels_of(batch)
        image = colours(batch.image)
        if phase == "image":
            image = recoloured(image, batch.rng)
        image, lesion = moved(image, lesion, batch.rng)
        if phase == "text":
            return self.text_loss(image, lesion)
        return self.image_loss(image, label, lesion)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, _, grid = self.seen(batch.image)
        told, found = self.told(), torch.zeros(())
        for patch in patches:
            cosines = two_maps(patch, told, 0.01, grid)
            likely = (cosines[:, 1:] + 1 - cosines[:, :1]) / 2
            window = [min(9, 2 * n - 1) for n in grid]
            blurred = gaussian_blur(likely, likely.new_full((len(likely),), 1.5), tuple(window))
            found = found.to(blurred) + enlarged(blurred, batch.image.shape[2:])
        return Maps(found, found.amax((1, 2, 3)))


def halved(step: int, steps: int) -> float:
    """Half behind 16,000 steps, and again behind 32,000."""
    return float(0.5 ** ((step >= 16_000) + (step >= 32_000)))


class Stages(Language):
    """The arguments of ``language`` and those of both phases of ``aa_clip``."""

    text_lr: float
    text_batch: int
    text_epochs: int
    text_steps: int | None
    image_lr: float
    image_batch: int
    image_epochs: int
    image_steps: int | None


def _stage(kind: str, lr: float, batch: int, epochs: int) -> Options:
    of = f"of the phase of the {kind} tower"
    return Options(
        {
            f"{kind}_lr": float, f"{kind}_batch": int, f"{kind}_epochs": int,
            f"{kind}_steps": int | None,
        },
        {
            f"{kind}_lr": lr, f"{kind}_batch": batch, f"{kind}_epochs": epochs,
            f"{kind}_steps": None,
        },
        {
            f"{kind}_lr": f"learning rate of Adam {of}.",
            f"{kind}_batch": f"images in an update {of}.",
            f"{kind}_epochs": f"passes over the training images {of}.",
            f"{kind}_steps": f"updates {of}, instead of epochs.",
        },
    )  # fmt: skip


STAGES = (
    language(size=518, tower="ViT-L-14-336", prompts="object")
    | _stage("text", 1e-5, 16, 5)
    | _stage("image", 5e-4, 2, 20)
)


@register(
    "aa_clip",
    paper="Ma 2025",
    regime="few-anomalies",
    presets={
        "laptop": {
            "tower": "ViT-B-16", "size": 224, "layers": (3, 6, 9, 12), "valued": 6, "until": (3, 3),
            "text_steps": 50, "image_steps": 150, "text_batch": 4,
        },
    },
    preprocess=PICTURE,
    tiny={
        **TINY, "layers": (2, 4), "valued": 2, "until": (1, 1), "text_steps": 20, "text_batch": 8,
        "image_steps": 80, "image_batch": 8, "image_lr": 5e-3,
    },
    options=STAGES,
)  # fmt: skip
def aa_clip(
    dims: int = 2,
    channels: int = 1,
    layers: tuple[int, ...] = (6, 12, 18, 24),
    until: tuple[int, int] = (3, 6),
    valued: int = 19,
    **options: Unpack[Stages],
) -> Method:
    """Adapters of the text tower, then of the image tower, that learn what ill is (AA-CLIP).

    Ma et al., CVPR 2025, learn on images with anomalies of any kind, with a CLIP ViT-L/14 at 518
    pixels that stays frozen. First adapters in the first 3 blocks of the text tower (a linear layer
    with leaky ReLU, of which a tenth joins the tokens) and a new last layer of it: sentences about
    healthy (3 states) and ill (5) objects in 2 templates, beside patches of value-value attention in
    the last 19 blocks plus the image, focal and Dice of both maps + 0.1 times the square of the cosine
    between both directions. Then adapters in the first 6 blocks of the image tower and a linear layer
    for the patches of blocks 6, 12, 18 and 24, and one for detection: the same loss of the four maps +
    cross-entropy of the image. Adam (0.5, 0.999), 5 epochs at 1e-5 in batches of 16, 20 at 5e-4 in
    batches of 2. Map: sum over the four of half of one plus the difference of 100 times both cosines,
    Gaussian of 1.5 patches; score: its maximum, as the release does for medical images.

    Train it on a cohort with masks of any kind, then ``normscan calibrate`` on healthy scans of yours.

    Departures:
        first phase: the patches of the last block alone, as the release's loop amounts to.
        attention: of values over an image's patches, as the article says; the release mixes up its
            axes, so that a patch looks at the same place of the other images of a batch.
        detection: not in the score, which for other than medical images has half of it there, after
            both are brought to 0..1 over the test set.
        object: "object" by default; the release names classes, and "scan" for medical sets.
        colours: brightness, contrast and saturation change before moving, as there.

    Args:
        layers: numbers of the blocks, from 1, whose patches are compared.
        until: blocks with adapters, from the first, in the text and in the image tower.
        valued: how many of the last blocks have value-value attention in the first phase.
    """
    tower = Tower(options["tower"], options["weights"])
    blocks = tower.shape.layers
    check_layers(options["tower"], layers, blocks, "layers")
    check_layers(options["tower"], [valued], blocks, "valued")
    words = wording(options["prompts"], options["table"], False)
    sentences = replace(words, healthy=HEALTHY, ill=ILL).ensembles("plain")
    return AACLIP(tower, sentences, layers, until, 1 + blocks - valued, options)
