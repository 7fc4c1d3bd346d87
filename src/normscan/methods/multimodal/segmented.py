"""MMRAD: Segment Anything taught by prompts to see anomalies in several images of a case."""

from __future__ import annotations

import itertools
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Use
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.textures import Textures
from normscan.methods.vision_language.common import dice
from normscan.networks.sam import SegmentAnything
from normscan.objectives.segmentation import focal
from normscan.registry import register
from normscan.synthesis import tasks

FOCAL = 20.0  # weight of the focal loss beside Dice, as Segment Anything was trained


class Judge(nn.Module):
    """Prompts, tokens and the score's head around a Segment Anything.

    Args:
        sam: encoder and decoder.
        images: of a case.
        prompts: of each image in each block; 0 for none.
    """

    def __init__(self, sam: SegmentAnything, images: int, prompts: int) -> None:
        super().__init__()
        self.sam = sam
        blocks, width = len(sam.encoder.layers), sam.encoder.pos_embed.shape[-1]
        self.prompts = nn.Parameter(torch.empty(images, blocks, prompts, width))
        self.marks = nn.Parameter(torch.empty(images, sam.joint))
        for drawn in (self.prompts, self.marks):
            nn.init.normal_(drawn, std=0.02)
        decoder = sam.decoder
        self.score = nn.Parameter(decoder.iou_token.weight.detach().clone())
        self.masks = nn.Parameter(decoder.mask_tokens.weight[:1].detach().repeat(images, 1))
        del decoder.iou_token, decoder.mask_tokens
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((sam.joint, sam.joint, sam.joint, 1)):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])

    @property
    def learnt(self) -> list[nn.Module]:
        """What is trained: all but the encoder."""
        return [Own(self), self.sam.decoder, self.sam.nothing, self.head]

    def forward(self, images: list[Tensor | None]) -> tuple[Tensor, list[Tensor | None]]:
        """Logits (B,) of the case, and (B, 1, H, W) of each of its images; None where one is missing."""
        there = [i for i, image in enumerate(images) if image is not None]
        seen = [self._embedded(images[i], i) for i in there]
        tokens = torch.cat([self.score, self.masks[there]])
        told, enlarged = self.sam.decoded(seen, tokens, self.marks[there])
        logits: list[Tensor | None] = [None] * len(images)
        for place, (i, part) in enumerate(zip(there, enlarged, strict=True), 1):
            logits[i] = self.sam.mask(told[:, place], part)
        return self.head(told[:, 0])[:, 0], logits

    def _embedded(self, image: Tensor | None, i: int) -> Tensor:
        assert image is not None
        return self.sam.embedded(image, self.prompts[i] if self.prompts.shape[2] else None)


class Own(nn.Module):
    """The parameters that belong to a judge itself, as a module of their own."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        for name in ("prompts", "marks", "score", "masks"):
            self.register_parameter(name, getattr(judge, name))


class MMRAD(Method):
    """A judge of cases, taught by planted textures; see ``mmrad``.

    Args:
        judge: Segment Anything with prompts and tokens.
        names: of the further images.
        textures: that are planted.
        training: the shared arguments.
    """

    def __init__(
        self, judge: Judge, names: tuple[str, ...], textures: Textures, training: Schedule
    ) -> None:
        super().__init__()
        self.uses = {"further": Use(prediction="welcome")}
        self.judge, self.names, self.textures, self._training = judge, names, textures, training
        self._corrupt = tasks.draem()
        self.judge.sam.encoder.requires_grad_(False)
        textures.files()  # a wrong folder is told before training

    def phases(self) -> list[Phase]:
        return [phase(self.judge.learnt, self._training, "train", optimizer=torch.optim.AdamW)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        ill = batch.rng.uniform((len(batch), 1, 1, 1)).to(batch.image) < 0.5
        images: list[Tensor | None] = []
        masks = []
        for image in (batch.image, *(batch.further[name] for name in self.names)):
            made = self._corrupt(
                image, self.textures.like(image, batch.rng), batch.rng,
                torch.ones_like(image[:, :1], dtype=torch.bool),
            )  # fmt: skip
            images.append(torch.where(ill, made.image, image))
            masks.append((made.label > 0.5) & ill)
        score, logits = self.judge(images)
        terms = {"score": F.binary_cross_entropy_with_logits(score, ill.flatten().to(score))}
        for name, mask, found in zip(("image", *self.names), masks, logits, strict=True):
            assert found is not None
            size = (mask.shape[2], mask.shape[3])
            likely = F.interpolate(found, size, mode="bilinear", align_corners=False).sigmoid()
            terms[f"dice_{name}"] = dice(likely, mask)
            terms[f"focal_{name}"] = FOCAL * focal(likely, mask)
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        score, logits = self.judge([batch.image, *map(batch.further.get, self.names)])
        first, *rest = logits
        assert first is not None
        further = {n: x.sigmoid() for n, x in zip(self.names, rest, strict=True) if x is not None}
        # In double precision, in which a sure score is still below 1.
        return Maps(first.sigmoid(), score.double().sigmoid(), further=further)


@register(
    "mmrad",
    paper="Li 2025",
    regime="healthy",
    presets={
        "laptop": {"size": 256, "steps": 300, "batch_size": 4, "lr": 1e-3},
    },
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "encoder": "tiny", "weights": "random", "size": 32, "steps": 40, "lr": 1e-2, "batch_size": 8,
    },
    options=schedule(lr=1e-4, batch_size=4, epochs=50, weight_decay=1e-2),
)  # fmt: skip
def mmrad(
    dims: int = 2,
    channels: int = 1,
    further: tuple[tuple[str, int], ...] = (("fundus", 3),),
    size: int = 1024,
    encoder: str = "sam-vit-base",
    weights: str = "hub",
    prompts: int = 8,
    textures: str = "",
    **training: Unpack[Schedule],
) -> Method:
    """Segment Anything judges a case of several images by tokens, and marks what is ill in each.

    Li et al., Information Fusion 113 (2025, MMRAD), for OCT and fundus photographs of an eye: the
    encoder of Segment Anything is shared by both modalities and stays frozen; prompts are tuned. The
    decoder is shared, too, and has tokens for its tasks: a mask token for where an image is ill, a
    score token for whether the case is. It learns from anomalies that are simulated in healthy pairs.
    Score: probability by the score token; maps: probabilities by the mask tokens.

    Any images of a case will do, of any shape and in no common place: the one in ``path``, and the
    columns ``further_<name>``. At prediction one may be missing: its tokens are left out, which the
    finding notes.

    Departures:
        details: its code wasn't released, its article not at hand, so all below is our reading of
            abstract and page: what prompts are (deep ones, which patches of each block attend to),
            that tokens see the embeddings of all images at once, marked by image, the three layers
            of the score's head, and all rates.
        anomalies: textures in outlines of Perlin noise, as of ``draem``, in all images of a case or in
            none.
        loss: Dice and focal 1 : 20, as of Segment Anything, and cross-entropy of the score.
        images: centred and filled up with their background where they aren't square, not at the
            bottom right; other sizes than 1024 take interpolated places.

    Args:
        channels: of the image; other numbers than three are averaged.
        further: names and channels of the further images.
        size: pixels along each side of each image.
        encoder: sam-vit-base, sam-vit-large or sam-vit-huge.
        weights: ``hub``, ``random``, or the path of a state dict with the names of transformers, or of
            a folder with ``model.safetensors``.
        prompts: that patches attend to, of each image in each block; 0 for none.
        textures: folder of images to plant, searched with its subfolders; empty for textures made of
            the batch.
    """
    if not further:
        raise ArgumentError(
            "mmrad judges a case by several images: give it a column further_<name>."
        )
    judge = Judge(SegmentAnything(encoder, size, weights), 1 + len(further), prompts)
    return MMRAD(judge, tuple(name for name, _ in further), Textures(textures), training)
