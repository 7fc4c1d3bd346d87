"""A network that foretells the next scores of samples from those that they had before."""

from __future__ import annotations

from torch import Tensor, nn

from normscan.rng import Rng


class Foreteller(nn.Module):
    """Two bidirectional LSTMs and a linear layer on their last output (Zhu et al., CVPR 2024).

    Their states begin with random numbers, and what goes from one to the other is dropped out, at
    every call: its source of randomness is an argument.

    Args:
        width: scores of a sample at a time.
        dropout: share of what the second LSTM sees that is 0.
    """

    def __init__(self, width: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(2 * width, width, batch_first=True, bidirectional=True)
        self.read, self.width, self.dropout = nn.Linear(2 * width, width), width, dropout

    def forward(self, scores: Tensor, rng: Rng) -> Tensor:
        """The next scores (N, width) after some (N, times, width)."""
        shape = (4, len(scores), self.width)
        hidden, cell = rng.uniform(shape).to(scores), rng.uniform(shape).to(scores)
        found, _ = self.first(scores, (hidden[:2], cell[:2]))
        if self.dropout:
            kept = rng.uniform(found.shape).to(found) >= self.dropout
            found = found * kept / (1 - self.dropout)
        found, _ = self.second(found, (hidden[2:], cell[2:]))
        result: Tensor = self.read(found[:, -1].relu())
        return result
