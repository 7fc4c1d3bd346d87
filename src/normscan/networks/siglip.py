"""The towers of SigLIP under the names of CLIP's: no class token, a text tower that sees all words."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.stable import Tokens
from normscan.networks.tower_parts import Between, Eye, Feed, Shape, Transformer, Words, drawn

SIGLIP_WORDS = ("tokenizer.json",)
SIGLIP_CONTEXT = 64  # tokens of a sentence
EPS = 1e-6
END = "</s>"  # ends a sentence, and fills it up


class Probe(nn.Module):
    """A learnt token that gathers an image from its patches.

    Args:
        width: numbers in a token.
        heads: of its attention.
        shape: sizes.
    """

    def __init__(self, width: int, heads: int, shape: Shape) -> None:
        super().__init__()
        self.probe = drawn(1, 1, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, EPS)
        self.mlp = Feed(width, shape)

    def forward(self, x: Tensor) -> Tensor:
        """Patches (B, n, width) to (B, width)."""
        probe = self.probe.expand(len(x), -1, -1)
        found = self.attention(probe, x, x, need_weights=False)[0]
        result: Tensor = (found + self.mlp(self.layernorm(found)))[:, 0]
        return result


class Gathering(Transformer):
    """Blocks that don't see the first token, and in its place at the end what the patches say.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape.width, shape.layers, shape.heads, shape, EPS)
        self.ln_post = nn.LayerNorm(shape.width, EPS)
        self.head = Probe(shape.width, shape.heads, shape)

    def forward(self, x: Tensor, between: Between | None = None, causal: bool = False) -> Tensor:
        x = x if between is None else between(0, x)
        for i, block in enumerate(self.resblocks, 1):
            x = torch.cat([x[:, :1], block(x[:, 1:])], 1)
            x = x if between is None else between(i, x)
        return torch.cat([self.head(self.ln_post(x[:, 1:]))[:, None], x[:, 1:]], 1)


class SiglipEye(Eye):
    """The image tower of SigLIP, with a first token as CLIP's: it is nothing till the last block.

    Args:
        shape: sizes.
    """

    antialias = False  # as transformers brings its places to another grid

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        width = shape.width
        self.conv1 = nn.Conv2d(3, width, shape.patch, shape.patch)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        with torch.no_grad():
            self.positional_embedding[0] = 0
        self.ln_pre, self.ln_post = nn.Identity(), nn.Identity()
        self.transformer = Gathering(shape)
        self.proj = nn.Parameter(torch.eye(width))  # what is gathered is in the common space
        for value in (self.mean, self.std):
            value.fill_(0.5)


class SiglipTongue(Words):
    """The text tower of SigLIP, whose last token speaks for a sentence; its words can't be learnt.

    Args:
        shape: sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape, SIGLIP_CONTEXT, EPS)
        self.head = nn.Linear(shape.text_width, shape.joint)

    def forward(self, ids: Tensor) -> Tensor:
        """Sentences (N, 64) in the common space, (N, joint), not brought to length 1."""
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding)
        result: Tensor = self.head(self.ln_final(x[:, -1]))
        return result


def canonical(text: str) -> str:
    """A sentence as SigLIP learnt it: small letters, no punctuation, single spaces."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(plain.split())


def siglip_tokeniser(folder: Path | None) -> Tokens:
    """Sentences to SigLIP's tokens (N, 64), filled up with the one that ends them.

    Args:
        folder: with ``tokenizer.json``; None for one of letters, for random weights.
    """
    from tokenizers import Tokenizer

    made = _of_letters() if folder is None else Tokenizer.from_file(str(folder / SIGLIP_WORDS[0]))
    end = made.token_to_id(END)

    def tokens(prompts: Sequence[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            ids = made.encode(canonical(prompt), add_special_tokens=False).ids
            kept = torch.tensor([*ids[: SIGLIP_CONTEXT - 1], end])
            rows.append(F.pad(kept, (0, SIGLIP_CONTEXT - len(kept)), value=end))
        return torch.stack(rows)

    return tokens


def _of_letters() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = ["▁", *string.ascii_lowercase, *string.digits]
    words = [("<pad>", 0.0), (END, 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    made = Tokenizer(models.Unigram(words, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made
