"""What is put into Stable Diffusion's attention: a look at it, and two branches that share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def shown_attention(attn: Any, told: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of a module of diffusers, step by step.

    Args:
        attn: diffusers' ``Attention``.
        told: (B, n, D) what is looked at; None for x itself.
        x: (B, N, C).

    Returns:
        The module's result (B, N, C), and where each place looks, (B, heads, N, n).
    """
    told = x if told is None else told
    heads = attn.heads

    def parted(y: Tensor) -> Tensor:
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    query, key, value = parted(attn.to_q(x)), parted(attn.to_k(told)), parted(attn.to_v(told))
    share = (attn.scale * query @ key.transpose(2, 3)).softmax(3)
    return attn.to_out[0]((share @ value).transpose(1, 2).flatten(2)), share


class CrossAttention:
    """Keeps where a U-Net looks in what it is told, at one resolution.

    Args:
        unet: diffusers', whose attention to a text is replaced by an equal one that can be seen.
        cells: along each side of the grid that is kept.
    """

    def __init__(self, unet: Any, cells: int) -> None:
        self.cells, self.kept = cells, list[Tensor]()
        inner = unet.attn_processors
        unet.set_attn_processor(
            {name: self if ".attn2." in name else own for name, own in inner.items()}
        )

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:  # fmt: skip
        result, share = shown_attention(attn, encoder_hidden_states, hidden_states)
        if share.shape[2] == self.cells**2:
            self.kept.append(share)
        return result

    def taken(self) -> Tensor:
        """The mean over layers and heads since the last time, (B, cells, cells, n)."""
        kept, self.kept = self.kept, []
        return torch.cat(kept, 1).mean(1).unflatten(1, (self.cells, self.cells))


class LowRank(nn.Module):
    """A learnt change of low rank that begins at zero (Hu et al. 2022); (..., a) to (..., b)."""

    def __init__(self, a: int, b: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(a, rank, bias=False), nn.Linear(rank, b, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.up(self.down(x))
        return result


class Adapted(nn.Module):
    """A linear layer and its learnt change of low rank."""

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer, self.change = layer, LowRank(layer.in_features, layer.out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.change(x)
        return result


class BranchAttention(nn.Module):
    """Attention of two branches with low-rank changes of their own, and between both.

    Samples come in pairs: (B * 2, N, C) with the branches of a sample behind each other. After the
    attention of each branch every place looks at itself in both (DualAnoDiff, Jin et al. 2025).

    Args:
        width: channels of what attends.
        told: channels of what is looked at.
        rank: of the changes.
    """

    def __init__(self, width: int, told: int, rank: int) -> None:
        super().__init__()
        self.query = nn.ModuleList(LowRank(width, width, rank) for _ in range(2))
        self.key = nn.ModuleList(LowRank(told, width, rank) for _ in range(2))
        self.value = nn.ModuleList(LowRank(told, width, rank) for _ in range(2))
        self.out = nn.ModuleList(LowRank(width, width, rank) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.into = nn.Linear(width, width)
        self.looks = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.back = nn.Linear(width, width)

    def forward(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        **_: Any,
    ) -> Tensor:  # fmt: skip
        x = hidden_states
        told = x if encoder_hidden_states is None else encoder_hidden_states

        def changed(layer: Callable[[Tensor], Tensor], own: nn.ModuleList, y: Tensor) -> Tensor:
            pairs = y.unflatten(0, (-1, 2))
            change = torch.stack([own[i](pairs[:, i]) for i in range(2)], 1)
            return layer(y) + change.flatten(0, 1)

        query, key, value = (
            changed(layer, own, y).unflatten(2, (attn.heads, -1)).transpose(1, 2)
            for layer, own, y in (
                (attn.to_q, self.query, x), (attn.to_k, self.key, told),
                (attn.to_v, self.value, told),
            )
        )  # fmt: skip
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        found = changed(attn.to_out[0], self.out, found)
        # (B * N, 2, C): the branches of one place side by side.
        both = self.into(self.norm(found)).unflatten(0, (-1, 2)).transpose(1, 2)
        shared = F.scaled_dot_product_attention(*(look(both) for look in self.looks))
        return found + self.back(shared).transpose(1, 2).flatten(0, 1)


def branch(unet: Any, rank: int) -> None:
    """Give every attention of a U-Net two branches, which it then holds."""
    made = {}
    for name in unet.attn_processors:
        attn = unet.get_submodule(name.removesuffix(".processor"))
        made[name] = BranchAttention(attn.to_q.in_features, attn.to_k.in_features, rank)
    unet.set_attn_processor(made)


def adapt(text: nn.Module, rank: int) -> None:
    """Give the projections of a text tower's attention changes of low rank, which it then holds."""
    for module in list(text.modules()):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            layer = getattr(module, name, None)
            if isinstance(layer, nn.Linear):
                setattr(module, name, Adapted(layer, rank))
