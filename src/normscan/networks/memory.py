"""A memory of healthy codes: what is decoded is a mixture of a few learned vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.autoencoder import CompactAutoencoder


class Memory(nn.Module):
    """Attention over learned slots with hard shrinkage (Gong et al., ICCV 2019).

    The attention is the softmax of the dot products of code and slots, as in the released code; the
    article divides them by both lengths. Weights up to ``shrink`` become 0, and the rest is scaled
    to sum to 1.

    Args:
        slots: number of learned vectors.
        features: length of a code.
        shrink: weight below which a slot isn't used; 0 for no shrinkage.
    """

    def __init__(self, slots: int, features: int, shrink: float = 0.0025) -> None:
        super().__init__()
        bound = features**-0.5
        self.slots = nn.Parameter(torch.empty(slots, features).uniform_(-bound, bound))
        self.shrink = shrink

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture (B, features) and attention (B, slots) of codes (B, features)."""
        attention = (z @ self.slots.T).softmax(-1)
        if self.shrink > 0:
            over = attention - self.shrink
            # A step at the threshold with a gradient: relu(a - t) a / |a - t|.
            attention = over.relu() * attention / (over.abs() + 1e-12)
            attention = F.normalize(attention, p=1, dim=-1)
        return attention @ self.slots, attention


def attention_entropy(attention: Tensor) -> Tensor:
    """Entropy in nats of (B, slots) attention, mean over the batch: a scalar."""
    return -(attention * (attention + 1e-12).log()).sum(-1).mean()


class MemoryAutoencoder(nn.Module):
    """A compact autoencoder whose code passes through a memory.

    Args:
        coder: encoder and decoder with a dense code.
        memory: of codes of the same length.
    """

    def __init__(self, coder: CompactAutoencoder, memory: Memory) -> None:
        super().__init__()
        self.coder = coder
        self.memory = memory

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Restored image (B, C, *spatial) and attention (B, slots)."""
        z, attention = self.memory(self.coder.encode(x)[0])
        return self.coder.decode(z), attention

    def forward(self, x: Tensor) -> Tensor:
        return self.restore(x)[0]
