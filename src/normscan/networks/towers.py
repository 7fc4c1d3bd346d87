"""CLIP's two towers with their insides within reach: tokens, attention and blocks of any layer.

Methods change attention, add tokens and read layers from within, which the towers of open_clip and
transformers don't allow. Tensors have open_clip's names and shapes, so that its files load as they
are; those of transformers are brought under them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest
from normscan.networks.backbones import comes_from_state
from normscan.networks.sources import read_weights
from normscan.networks.stable import CLIP_MEAN, CLIP_STD, Tokens, announced, colours, tokeniser
from normscan.networks.tower_files import load_towers, located


@dataclass(frozen=True)
class Shape:
    """Sizes of both towers and where their weights are.

    Attributes:
        pixels: along each side of the images that the positions were learnt for.
        patch: pixels along each side of a patch.
        width: of the image tower.
        layers: of the image tower.
        heads: of the image tower.
        joint: numbers of an image or a sentence in the common space.
        text_width: of the text tower.
        text_layers: of the text tower.
        text_heads: of the text tower.
        vocabulary: tokens of the text tower.
        quick: GELU as x sigmoid(1.702 x), as OpenAI's weights want it.
        repository: on the Hugging Face hub.
        file: in it.
    """

    pixels: int
    patch: int
    width: int
    layers: int
    heads: int
    joint: int
    text_width: int
    text_layers: int
    text_heads: int
    vocabulary: int = 49408
    quick: bool = True
    repository: str = ""
    file: str = "open_clip_model.safetensors"


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
    # For tests, with weights that are random.
    "tiny": Shape(32, 4, 32, 4, 2, 16, 16, 2, 2, vocabulary=514),
}  # fmt: skip
CONTEXT = 77  # tokens of a sentence


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


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Attention of all heads, with the tensors of torch's own.

    Args:
        width: numbers in a token.
        heads: that share them.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def forward(self, x: Tensor, causal: bool = False, values: bool = False) -> Tensor:
        """(B, n, width) to the same.

        Args:
            x: tokens.
            causal: a token sees itself and those before it alone.
            values: the values are queries and keys too (value-value attention of CLIP Surgery).
        """
        mixed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = mixed.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if values:
            query = key = value
        found = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        result: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return result


class Feed(nn.Sequential):
    """The two layers behind attention."""

    def __init__(self, width: int, quick: bool) -> None:
        super().__init__()
        self.add_module("c_fc", nn.Linear(width, 4 * width))
        self.add_module("gelu", QuickGELU() if quick else nn.GELU())
        self.add_module("c_proj", nn.Linear(4 * width, width))


class Block(nn.Module):
    """A block of either tower: norm, attention, norm, two layers."""

    def __init__(self, width: int, heads: int, quick: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Feed(width, quick)

    def forward(self, x: Tensor, causal: bool = False, values: bool = False) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal, values)
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


# What is done with the tokens behind so many blocks; 0 stands before the first.
Between = Callable[[int, Tensor], Tensor]


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(self, width: int, layers: int, heads: int, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, quick) for _ in range(layers))

    def forward(self, x: Tensor, between: Between | None = None, causal: bool = False) -> Tensor:
        """(B, n, width) to the same."""
        x = x if between is None else between(0, x)
        for i, block in enumerate(self.resblocks, 1):
            x = block(x, causal)
            x = x if between is None else between(i, x)
        return x


def _drawn(*shape: int) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(*shape))
    nn.init.normal_(parameter, std=shape[-1] ** -0.5)
    return parameter


class Eye(nn.Module):
    """The image tower.

    Args:
        shape: sizes.

    Attributes:
        patch: pixels along each side of a patch.
        places: how learnt positions are brought to another grid: ``bicubic`` with antialiasing, as
            open_clip does, or ``bilinear``.
    """

    places: Literal["bicubic", "bilinear"] = "bicubic"
    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch, width = shape.patch, shape.width
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.class_embedding = _drawn(width)
        self.positional_embedding = _drawn((shape.pixels // shape.patch) ** 2 + 1, width)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, shape.layers, shape.heads, shape.quick)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, shape.joint))
        nn.init.normal_(self.proj, std=width**-0.5)
        for key, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(key, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def enter(self, image: Tensor, normalised: bool = True) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block.

        Args:
            image: (B, C, H, W), cut off at 0 and 1; other channels than three are averaged. Sides
                that are no whole patches are resized down to such.
            normalised: by the mean and deviation of what CLIP was trained on.

        Returns:
            (B, 1 + h w, width), and the grid (h, w).
        """
        grid = (image.shape[2] // self.patch, image.shape[3] // self.patch)
        x, sides = colours(image).clamp(0, 1), [n * self.patch for n in grid]
        if list(x.shape[2:]) != sides:
            x = F.interpolate(x, sides, mode="bicubic", align_corners=False, antialias=True)
        x = self.conv1((x - self.mean) / self.std if normalised else x).flatten(2).mT
        first = self.class_embedding.expand(len(x), 1, -1)
        return self.ln_pre(torch.cat([first, x], 1) + self.positions(grid)), grid

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + h w, width) places of the tokens, interpolated where the grid is another one."""
        first, rest = self.positional_embedding[:1], self.positional_embedding[1:]
        side = round(len(rest) ** 0.5)
        if grid == (side, side):
            return self.positional_embedding
        learnt = rest.mT.reshape(1, -1, side, side)
        smooth = self.places == "bicubic"
        learnt = F.interpolate(
            learnt, grid, mode=self.places, align_corners=False, antialias=smooth
        )
        return torch.cat([first, learnt[0].flatten(1).mT])

    def joined(self, tokens: Tensor) -> Tensor:
        """Tokens (..., width) in the common space, (..., joint)."""
        result: Tensor = self.ln_post(tokens) @ self.proj
        return result

    def layers(
        self, image: Tensor, wanted: Sequence[int], normalised: bool = True
    ) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Tokens (B, 1 + h w, width) as each of some blocks leaves them, the last ones, the grid.

        Args:
            image: as in ``enter``.
            wanted: numbers of blocks, from 1.
            normalised: as in ``enter``.

        Returns:
            One tensor for each of ``wanted``, those behind the last block, and (h, w).
        """
        kept: dict[int, Tensor] = {}

        def keep(i: int, x: Tensor) -> Tensor:
            if i in wanted:
                kept[i] = x
            return x

        x, grid = self.enter(image, normalised)
        last = self.transformer(x, keep)
        return [kept[i] for i in wanted], last, grid

    def valued(
        self, image: Tensor, wanted: Sequence[int], first: int, fed: bool = False
    ) -> tuple[list[Tensor], Tensor, tuple[int, int]]:
        """Like ``layers``, with value-value attention from block ``first`` on (CLIP Surgery).

        The tokens part there: the original ones go on and are the last ones that are returned. The
        others begin as they do. Each block adds the value-value attention of the original tokens to
        them and nothing else (the DPAM of AnomalyCLIP), or with ``fed`` goes on with their own, its
        two layers included (AA-CLIP).

        Args:
            image: as in ``enter``.
            wanted: numbers of blocks, from 1.
            first: number of the first block with value-value attention.
            fed: see above.
        """
        x, grid = self.enter(image)
        own, kept = x, {}
        for i, block in enumerate(self.transformer.resblocks, 1):
            assert isinstance(block, Block)
            if i < first:
                own = x = block(x)
            elif fed:
                x, own = block(x), block(own, values=True)
            else:
                own = own + block.attn(block.ln_1(x), values=True)
                x = block(x)
            kept[i] = own
        return [kept[i] for i in wanted], x, grid


def ended(states: Tensor, ids: Tensor) -> Tensor:
    """The states (N, width) of the tokens that end sentences, of (N, 77, width)."""
    return states[torch.arange(len(ids), device=ids.device), ids.argmax(1)]


class Tongue(nn.Module):
    """The text tower.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.text_width
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.positional_embedding = _drawn(CONTEXT, width)
        self.transformer = Transformer(width, shape.text_layers, shape.text_heads, shape.quick)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, shape.joint))
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(
        self,
        ids: Tensor,
        words: Tensor | None = None,
        between: Between | None = None,
        causal: bool = True,
    ) -> Tensor:
        """Sentences in the common space, not brought to length 1.

        Args:
            ids: (N, 77) tokens; the one that ends a sentence has the highest number.
            words: (N, 77, width) in place of the embedded tokens.
            between: as of the transformer.
            causal: a token sees itself and those before it alone, as CLIP learnt it.

        Returns:
            (N, joint).
        """
        states = self.states(ids, words, between, causal)
        result: Tensor = ended(states, ids) @ self.text_projection
        return result

    def states(
        self,
        ids: Tensor,
        words: Tensor | None = None,
        between: Between | None = None,
        causal: bool = True,
    ) -> Tensor:
        """States (N, 77, width) of all tokens behind the last norm; see ``forward``."""
        x = self.token_embedding(ids) if words is None else words
        result: Tensor = self.ln_final(
            self.transformer(x + self.positional_embedding, between, causal)
        )
        return result


class Tower(nn.Module):
    """Both towers of one of ``SHAPES``, frozen.

    Args:
        name: one of ``SHAPES``.
        weights: ``hub``, ``random`` for tests, or the path of a state dict of open_clip or
            transformers, or of a folder with it; ``vocab.json`` and ``merges.txt`` beside it.

    Attributes:
        eye: the image tower.
        tongue: the text tower.
        shape: sizes.

    Raises:
        ArgumentError: unknown name.
        WeightsError: weights that aren't there or don't fit; says what to fetch and where to put it.
    """

    def __init__(self, name: str, weights: str = "hub") -> None:
        super().__init__()
        self.shape = shape_of(name)
        self.eye, self.tongue = Eye(self.shape), Tongue(self.shape)
        self._tokens: Tokens | None = None
        if not comes_from_state():
            file, folder = located(name, self.shape.repository, self.shape.file, weights)
            self._tokens = tokeniser(CONTEXT, folder)
            if file is not None:
                announced(name, self.eye, self.tongue)
                load_towers(self.eye, self.tongue, read_weights(file, name), str(file))
        self.requires_grad_(False)

    def ids(self, sentences: Sequence[str]) -> Tensor:
        """Tokens (N, 77) of sentences, 0 behind their ends as in open_clip.

        All are 0 where a saved detector brings what follows from them.
        """
        if self._tokens is None:
            return torch.zeros(len(sentences), CONTEXT).long()
        found = self._tokens(sentences)
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
            parts = [self.tongue(ids) for ids in self.ids(sentences).split(64)]
            features = torch.cat(parts)
            features = F.normalize(features, dim=1) if normalised else features
            mean = features.mean(0)
            found.append(F.normalize(mean, dim=0) if unit else mean)
        return torch.stack(found)
