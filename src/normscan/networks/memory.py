"""A memory of healthy codes: what is decoded is a mixture of a few learned vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.autoencoder import CompactAutoencoder
from normscan.networks.together import gathered


def strongest(logits: Tensor, count: int) -> Tensor:
    """Softmax of (B, slots), of which only what is above the count-th largest is kept.

    The kept weights are scaled to sum to 1; their gradient is that of the softmax (straight
    through). As in the released code of SQUID the count-th itself is 0, so one less are kept.
    """
    soft = logits.softmax(-1)
    fixed = soft.detach()
    over = fixed - fixed.topk(count, dim=-1).values[:, -1:]
    hard = F.normalize(over.relu() * fixed / (over.abs() + 1e-12), p=1, dim=-1)
    return (hard - soft).detach() + soft


class StrongestMemory(nn.Module):
    """Learned slots, read by the few that are most alike (Xiang et al., CVPR 2023).

    Args:
        slots: number of vectors.
        features: length of a vector.
        count: the weights above the so-manyth largest are used, see ``strongest``.
    """

    slots: Tensor

    def __init__(self, slots: int, features: int, count: int) -> None:
        super().__init__()
        bound = features**-0.5
        self.count = count
        self.keep(torch.empty(slots, features).uniform_(-bound, bound))

    def keep(self, slots: Tensor) -> None:
        """Hold the first slots."""
        self.slots = nn.Parameter(slots)

    def forward(self, z: Tensor) -> Tensor:
        """Mixtures (B, features) for codes (B, features)."""
        return strongest(z @ self.slots.T, self.count) @ self.slots


class MemoryQueue(StrongestMemory):
    """Slots that are codes of the last training images; the newest take the place of the oldest.

    Several processes queue the codes of all of them, so that it is the same in each.
    """

    place: Tensor
    gathered = ("slots", "place")

    def keep(self, slots: Tensor) -> None:
        """Hold the first slots."""
        self.register_buffer("slots", slots)
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(self, z: Tensor) -> None:
        """Put codes (B, features) into the queue; of more than it holds the last ones."""
        n = len(self.slots)
        z = gathered(z)[0][-n:].to(self.slots)
        at = (self.place + torch.arange(len(z), device=z.device)) % n
        # Not in place: the gradient of what was read from them is still to come.
        self.slots = self.slots.index_copy(0, at, z)
        self.place = (self.place + len(z)) % n


class Memory(nn.Module):
    """Attention over learned slots with hard shrinkage (Gong et al., ICCV 2019).

    The attention is the softmax of the dot products of code and slots, as in the released code; the
    article divides them by both lengths. Weights up to ``shrink`` become 0, and the rest is scaled
    to sum to 1.

    Args:
        slots: number of learned vectors.
        features: length of a code.
        shrink: weight below which a slot isn't used; 0 for no shrinkage.
        cosine: divide the dot products by both lengths.
    """

    def __init__(
        self, slots: int, features: int, shrink: float = 0.0025, cosine: bool = False
    ) -> None:
        super().__init__()
        bound = features**-0.5
        self.slots = nn.Parameter(torch.empty(slots, features).uniform_(-bound, bound))
        self.shrink, self.cosine = shrink, cosine

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mixture (B, features) and attention (B, slots) of codes (B, features)."""
        alike = (F.normalize(z), F.normalize(self.slots)) if self.cosine else (z, self.slots)
        attention = (alike[0] @ alike[1].T).softmax(-1)
        if self.shrink > 0:
            over = attention - self.shrink
            # A step at the threshold with a gradient: relu(a - t) a / |a - t|.
            attention = over.relu() * attention / (over.abs() + 1e-12)
            attention = F.normalize(attention, p=1, dim=-1)
        return attention @ self.slots, attention


class PlaceMemory(Memory):
    """A memory of the codes at single places of a feature map."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mixtures (B, features, *places) and attention (B * places, slots) of codes like them."""
        codes = z.movedim(1, -1)
        mixtures, attention = super().forward(codes.flatten(0, -2))
        return mixtures.reshape(codes.shape).movedim(-1, 1), attention


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
