"""What both towers of a CLIP are made of: blocks, an image tower, a text tower.

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

from normscan.networks.stable import CLIP_MEAN, CLIP_STD, colours

CONTEXT = 77  # tokens of a sentence


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
        kind: ``clip``; ``bert`` for timm's transformer beside a BERT, as BiomedCLIP has them;
            ``siglip`` for the towers of SigLIP.
        repository: on the Hugging Face hub.
        file: in it.
        hidden: numbers between the two layers behind attention; 0 for four times the width.
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
    kind: Literal["clip", "bert", "siglip"] = "clip"
    repository: str = ""
    file: str = "open_clip_model.safetensors"
    hidden: int = 0

    @property
    def gelu(self) -> nn.Module:
        """The activation between the two layers behind attention."""
        if self.kind == "siglip":
            return nn.GELU("tanh")
        return QuickGELU() if self.quick else nn.GELU()


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

    def __init__(self, width: int, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden or 4 * width
        self.add_module("c_fc", nn.Linear(width, hidden))
        self.add_module("gelu", shape.gelu)
        self.add_module("c_proj", nn.Linear(hidden, width))


class Block(nn.Module):
    """A block of either tower: norm, attention, norm, two layers."""

    def __init__(self, width: int, heads: int, shape: Shape, eps: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps)
        self.mlp = Feed(width, shape)

    def forward(self, x: Tensor, causal: bool = False, values: bool = False) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal, values)
        result: Tensor = x + self.mlp(self.ln_2(x))
        return result


# What is done with the tokens behind so many blocks; 0 stands before the first.
Between = Callable[[int, Tensor], Tensor]


class Transformer(nn.Module):
    """Blocks in a row."""

    def __init__(
        self, width: int, layers: int, heads: int, shape: Shape, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, shape, eps) for _ in range(layers))

    def forward(self, x: Tensor, between: Between | None = None, causal: bool = False) -> Tensor:
        """(B, n, width) to the same."""
        x = x if between is None else between(0, x)
        for i, block in enumerate(self.resblocks, 1):
            x = block(x, causal)
            x = x if between is None else between(i, x)
        return x


def drawn(*shape: int) -> nn.Parameter:
    """A parameter of normal numbers, the smaller the longer its rows are."""
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
        antialias: smooth ``bicubic`` ones.
    """

    places: Literal["bicubic", "bilinear"] = "bicubic"
    antialias = True
    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch, width = shape.patch, shape.width
        timm = shape.kind == "bert"
        eps = 1e-6 if timm else 1e-5
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch, bias=timm)
        self.class_embedding = drawn(width)
        self.positional_embedding = drawn((shape.pixels // shape.patch) ** 2 + 1, width)
        self.ln_pre = nn.Identity() if timm else nn.LayerNorm(width)
        self.transformer = Transformer(width, shape.layers, shape.heads, shape, eps)
        self.ln_post: nn.Module = nn.LayerNorm(width, eps)
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
        smooth = self.antialias and self.places == "bicubic"
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


class Words(nn.Module):
    """What all text towers have: embedded tokens, their places, blocks and a norm.

    Args:
        shape: sizes.
        context: tokens of a sentence.
        eps: of the norms.
    """

    def __init__(self, shape: Shape, context: int, eps: float = 1e-5) -> None:
        super().__init__()
        width = shape.text_width
        self.token_embedding = nn.Embedding(shape.vocabulary, width)
        self.positional_embedding = drawn(context, width)
        self.transformer = Transformer(width, shape.text_layers, shape.text_heads, shape, eps)
        self.ln_final = nn.LayerNorm(width, eps)


class Tongue(Words):
    """The text tower.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, CONTEXT)
        width = shape.text_width
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
