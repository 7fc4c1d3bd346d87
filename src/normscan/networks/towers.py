"""CLIP's two towers and those of its kin by name, with their insides within reach."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest
from normscan.networks.backbones import comes_from_state
from normscan.networks.bert import BertTongue, bert_tokeniser
from normscan.networks.siglip import SiglipEye, SiglipTongue, siglip_tokeniser
from normscan.networks.sources import read_weights
from normscan.networks.stable import Tokens, announced, tokeniser
from normscan.networks.tower_files import load_towers, located
from normscan.networks.tower_parts import CONTEXT, Eye, Shape, Tongue

_B = (768, 12, 12, 512, 512, 12, 8)
_L = (1024, 24, 16, 768, 768, 12, 12)
_PLUS = (240, 16, 896, 12, 14, 640, 640, 12, 10)
SHAPES = {
    "ViT-B-16-plus-240": Shape(
        *_PLUS, quick=False, repository="timm/vit_base_patch16_plus_clip_240.laion400m_e31"
    ),
    "ViT-B-16-plus-240-e32": Shape(
        *_PLUS, quick=False, repository="timm/vit_base_patch16_plus_clip_240.laion400m_e32"
    ),
    "ViT-B-32": Shape(224, 32, *_B, repository="timm/vit_base_patch32_clip_224.openai"),
    "ViT-B-16": Shape(224, 16, *_B, repository="timm/vit_base_patch16_clip_224.openai"),
    "ViT-L-14": Shape(224, 14, *_L, repository="timm/vit_large_patch14_clip_224.openai"),
    "ViT-L-14-336": Shape(336, 14, *_L, repository="timm/vit_large_patch14_clip_336.openai"),
    "PubMedCLIP": Shape(
        224, 32, *_B, repository="flaviagiammarino/pubmed-clip-vit-base-patch32",
        file="model.safetensors",
    ),
    "BiomedCLIP": Shape(
        224, 16, 768, 12, 12, 512, 768, 12, 12, vocabulary=30522, quick=False, kind="bert",
        repository="microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        file="open_clip_pytorch_model.bin",
    ),
    "MedSigLIP": Shape(
        448, 14, 1152, 27, 16, 1152, 1152, 27, 16, vocabulary=32000, kind="siglip",
        repository="google/medsiglip-448", file="model.safetensors", hidden=4304,
    ),
    # For tests, with weights that are random.
    "tiny-siglip": Shape(
        32, 4, 32, 4, 2, 32, 32, 2, 2, vocabulary=40, kind="siglip", hidden=48
    ),
    "tiny-bert": Shape(
        32, 4, 32, 4, 2, 16, 16, 2, 2, vocabulary=193, quick=False, kind="bert"
    ),
    "tiny": Shape(32, 4, 32, 4, 2, 16, 16, 2, 2, vocabulary=514),
}  # fmt: skip


def shape_of(name: str) -> Shape:
    """Return the sizes of a tower.

    Raises:
        ArgumentError: unknown; names the nearest one.
    """
    if name not in SHAPES:
        raise ArgumentError(
            f"there is no tower '{name}'.{nearest(name, SHAPES)} Known: {', '.join(SHAPES)}."
        )
    return SHAPES[name]


def check_layers(name: str, layers: Sequence[int], depth: int, argument: str) -> None:
    """Refuse blocks that a tower doesn't have.

    Args:
        name: of the tower.
        layers: numbers of blocks, from 1.
        depth: how many it has.
        argument: that gave them, for the message.

    Raises:
        ArgumentError: one of them isn't there, or there is none.
    """
    wrong = [layer for layer in layers if not 1 <= layer <= depth]
    if wrong or not layers:
        said = f"no block {wrong[0]}" if wrong else "to read no block"
        raise ArgumentError(
            f"the tower {name} has {depth} blocks, {said}: give --{argument} from 1 to {depth}."
        )


class Tower(nn.Module):
    """Both towers of one of ``SHAPES``, frozen.

    Args:
        name: one of ``SHAPES``.
        weights: ``hub``, ``random`` for tests, or the path of a state dict of open_clip or
            transformers, or of a folder with it; ``vocab.json`` and ``merges.txt`` beside it.

    Attributes:
        eye: the image tower.
        shape: sizes.

    Raises:
        ArgumentError: unknown name.
        WeightsError: weights that aren't there or don't fit; says what to fetch and where to put it.
    """

    def __init__(self, name: str, weights: str = "hub") -> None:
        super().__init__()
        self.shape = shape_of(name)
        shape = self.shape
        self.eye = SiglipEye(shape) if shape.kind == "siglip" else Eye(shape)
        self._bert: BertTongue | SiglipTongue | None = None  # whose words can't be learnt
        if shape.kind == "siglip":
            self._bert = SiglipTongue(shape)
        elif shape.kind == "bert":
            sizes = (shape.vocabulary, shape.text_width, shape.text_layers, shape.text_heads)
            self._bert = BertTongue(*sizes, shape.joint)
        self._clip = None if self._bert else Tongue(shape)
        self._tokens: Tokens | None = None
        if not comes_from_state():
            file, folder = located(
                name, self.shape.repository, self.shape.file, weights, self.shape.kind
            )
            if shape.kind == "siglip":
                self._tokens = siglip_tokeniser(folder)
            elif shape.kind == "bert":
                self._tokens = bert_tokeniser(folder)
            else:
                self._tokens = tokeniser(CONTEXT, folder)
            if file is not None:
                tongue = self._bert or self._clip
                assert tongue is not None
                announced(name, self.eye, tongue)
                load_towers(self.eye, tongue, read_weights(file, name), str(file))
        self.requires_grad_(False).eval()  # a BERT has dropout

    @property
    def tongue(self) -> Tongue:
        """CLIP's text tower, whose words can be learnt.

        Raises:
            ArgumentError: the text tower is a BERT, or SigLIP's.
        """
        if self._clip is None:
            raise ArgumentError(
                "this method changes the text tower from within, which a BERT or SigLIP's doesn't "
                "allow: take a tower of CLIP, such as ViT-L-14-336 or PubMedCLIP."
            )
        return self._clip

    def ids(self, sentences: Sequence[str]) -> Tensor:
        """Tokens (N, 77) of sentences, 0 behind their ends as in open_clip; of its kin their own.

        All are 0 where a saved detector brings what follows from them.
        """
        if self._tokens is None:
            return torch.zeros(len(sentences), CONTEXT).long()
        found = self._tokens(sentences)
        if self._bert is not None:
            return found
        return found * (torch.arange(CONTEXT) <= found.argmax(1, keepdim=True))

    @torch.no_grad()
    def told(
        self, classes: Sequence[Sequence[str]], normalised: bool = True, unit: bool = True
    ) -> Tensor:
        """A direction (classes, joint) for each class: the mean of its sentences.

        Args:
            classes: sentences of each.
            normalised: bring each sentence to length 1 before the mean.
            unit: bring the mean to length 1.
        """
        if self._tokens is None:
            return torch.zeros(len(classes), self.shape.joint)
        found = []
        for sentences in classes:
            said = self._bert or self.tongue
            parts = [said(ids) for ids in self.ids(sentences).split(64)]
            features = torch.cat(parts)
            features = F.normalize(features, dim=1) if normalised else features
            mean = features.mean(0)
            found.append(F.normalize(mean, dim=0) if unit else mean)
        return torch.stack(found)
