"""Words that are learnt in front of a sentence, and in the text tower's deeper blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normscan.networks.tower_parts import Tongue
from normscan.networks.towers import Tower


class LearntWords(nn.Module):
    """Sentences whose first words are learnt (CoOp), and that get further ones in deeper blocks.

    Args:
        tower: its tokeniser and its words.
        sentences: what follows the learnt words; each has words of its own.
        words: learnt ones in front of each.
        deep_words: learnt ones behind the start of every sentence, which replace what the block
            before made of them.
        depth: blocks with such words, from the second on.
        causal: a token sees itself and those before it alone.
    """

    ids: Tensor

    def __init__(
        self, tower: Tower, sentences: Sequence[str], words: int, deep_words: int = 0,
        depth: int = 0, causal: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal = causal
        # A letter holds the place of each word.
        begun = " ".join("X" * words)
        self.register_buffer("ids", tower.ids([f"{begun} {sentence}" for sentence in sentences]))
        width = tower.tongue.token_embedding.embedding_dim
        self.context = nn.Parameter(torch.empty(len(sentences), words, width))
        self.deep = nn.Parameter(torch.empty(depth, deep_words, width))
        nn.init.normal_(self.context, std=0.02)
        nn.init.normal_(self.deep, std=0.02)

    def forward(self, tongue: Tongue) -> Tensor:
        """The sentences in the common space, (N, joint), not of length 1."""
        words = tongue.token_embedding(self.ids)
        words = torch.cat([words[:, :1], self.context, words[:, 1 + self.context.shape[1] :]], 1)
        deeper = self._deeper if len(self.deep) else None
        return tongue(self.ids, words, deeper, self.causal)

    def _deeper(self, i: int, x: Tensor) -> Tensor:
        if not 1 <= i <= len(self.deep):
            return x
        new = self.deep[i - 1].expand(len(x), -1, -1)
        return torch.cat([x[:, :1], new, x[:, 1 + new.shape[1] :]], 1)
