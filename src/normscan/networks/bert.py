"""A BERT as the text tower of a CLIP, as BiomedCLIP has it, and its tokeniser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from normscan.networks.stable import Tokens
from normscan.networks.taps import import_transformers

BERT_WORDS = ("vocab.txt",)
BERT_CONTEXT = 256  # tokens of a sentence


class BertTongue(nn.Module):
    """A BERT as text tower, whose first token speaks for a sentence; its words can't be learnt.

    Args:
        vocabulary: tokens that it knows.
        width: of the transformer.
        layers: of it.
        heads: of its attention.
        joint: numbers of a sentence in the common space.
    """

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, joint: int) -> None:
        super().__init__()
        transformers = import_transformers()
        config = transformers.BertConfig(
            vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers,
            num_attention_heads=heads, intermediate_size=4 * width,
        )  # fmt: skip
        self.transformer = transformers.BertModel(config, add_pooling_layer=False)
        between = (width + joint) // 2
        self.proj = nn.Sequential(
            nn.Linear(width, between, bias=False), nn.GELU(),
            nn.Linear(between, joint, bias=False),
        )  # fmt: skip

    def forward(self, ids: Tensor) -> Tensor:
        """Sentences (N, 256) in the common space, (N, joint); 0 is no token."""
        states = self.transformer(ids, attention_mask=(ids != 0).long()).last_hidden_state
        result: Tensor = self.proj(states[:, 0])
        return result


def bert_tokeniser(folder: Path | None) -> Tokens:
    """Sentences to a BERT's tokens (N, 256), 0 behind their ends.

    Args:
        folder: with ``vocab.txt``; None for one of letters, for random weights.
    """
    transformers = import_transformers()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(i) for i in range(33, 127)]
    words = [*special, *letters, *(f"##{c}" for c in letters)]
    if folder is not None:
        words = (folder / BERT_WORDS[0]).read_text(encoding="utf-8").splitlines()
    made = transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)})

    def tokens(prompts: Sequence[str]) -> Tensor:
        found: Tensor = made(
            list(prompts), padding="max_length", max_length=BERT_CONTEXT, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return found

    return tokens
