"""Cells that fuse features of two modalities: built from a choice, or searched (DARTS, BM-NAS)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest

# A node's two inputs, by their numbers among the candidates, and its operation.
Node = tuple[int, int, str]


class Zero(nn.Module):
    """Nothing."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.zeros_like(x)


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class DotAttention(nn.Module):
    """Every place of x looks at the places of y, scaled by the root of the channels; then a norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k = (t.flatten(2).mT[:, None] for t in (x, y))
        found = F.scaled_dot_product_attention(q, k, k)[:, 0]
        result: Tensor = self.norm(found.mT.reshape(x.shape))
        return result


class Joined(nn.Module):
    """Both, joined, through a convolution of one pixel, a norm and a nonlinearity.

    Args:
        channels: of each.
        kind: ``glu``, ``relu`` or ``mish``.
    """

    def __init__(self, channels: int, kind: str) -> None:
        super().__init__()
        out = 2 * channels if kind == "glu" else channels
        self.kind = kind
        self.layers = nn.Sequential(nn.Conv2d(2 * channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = self.layers(torch.cat([x, y], 1))
        if self.kind == "glu":
            return F.glu(z, 1)
        return F.relu(z) if self.kind == "relu" else F.mish(z)


OPERATIONS = ("zero", "sum", "attention", "glu", "relu", "mish")


def operation(name: str, channels: int) -> nn.Module:
    """Return an operation of two maps (B, channels, h, w) that gives one.

    Raises:
        ArgumentError: unknown; names the nearest one.
    """
    if name not in OPERATIONS:
        raise ArgumentError(
            f"a cell has no operation '{name}'.{nearest(name, OPERATIONS)} It has: "
            f"{', '.join(OPERATIONS)}."
        )
    if name == "attention":
        return DotAttention(channels)
    if name in ("zero", "sum"):
        return Zero() if name == "zero" else Sum()
    return Joined(channels, name)


class Scores(nn.Module):
    """What a search learns of a cell: how much each input and each operation counts.

    Args:
        candidates: inputs of the first node; each further one may take those before it, too.
        nodes: of the cell.
    """

    def __init__(self, candidates: int, nodes: int) -> None:
        super().__init__()
        self.inputs = nn.ParameterList(
            nn.Parameter(1e-3 * torch.randn(2, candidates + i)) for i in range(nodes)
        )
        self.operations = nn.Parameter(1e-3 * torch.randn(nodes, len(OPERATIONS)))

    def chosen(self) -> tuple[Node, ...]:
        """The best of everything; the two inputs of a node differ."""
        found = []
        for inputs, ops in zip(self.inputs, self.operations, strict=True):
            first = int(inputs[0].argmax())
            others = inputs[1].detach().clone()
            others[first] = -torch.inf
            # Nothing is no choice: it would cut the node off.
            found.append((first, int(others.argmax()), OPERATIONS[1 + int(ops[1:].argmax())]))
        return tuple(found)


class FusionCell(nn.Module):
    """Nodes that each join two of what came before; the last ones are joined to one map.

    Args:
        channels: of all maps.
        candidates: inputs of the cell.
        choice: of each node; None to search, where each is a mixture of all.
        nodes: where it is searched.

    Raises:
        ArgumentError: a node takes what isn't there.
    """

    def __init__(
        self, channels: int, candidates: int, choice: Sequence[Node] | None, nodes: int = 2
    ) -> None:
        super().__init__()
        self.choice = None if choice is None else tuple(choice)
        self.scores = Scores(candidates, nodes) if choice is None else None
        names = [list(OPERATIONS)] * nodes if choice is None else [[op] for _, _, op in choice]
        for i, (a, b, _) in enumerate(choice or ()):
            if not (0 <= a < candidates + i and 0 <= b < candidates + i):
                raise ArgumentError(
                    f"node {i} of a cell takes inputs {a} and {b}, and there are "
                    f"{candidates + i}, counted from 0."
                )
        self.nodes = nn.ModuleList(
            nn.ModuleDict({name: operation(name, channels) for name in some}) for some in names
        )
        self.out = nn.Sequential(
            nn.Conv2d(len(names) * channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, inputs: Sequence[Tensor], searching: bool = False) -> Tensor:
        """Maps (B, channels, h, w) to one.

        Args:
            inputs: as many as ``candidates``.
            searching: mix all inputs and operations by the softmax of their scores.
        """
        states = list(inputs)
        if searching and self.scores is not None:
            shares = zip(self.scores.inputs, self.scores.operations, self.nodes, strict=True)
            for wanted, ops, node in shares:
                x, y = (
                    sum(w * s for w, s in zip(row.softmax(0), states, strict=True))
                    for row in wanted
                )
                assert isinstance(node, nn.ModuleDict)
                mixed = [w * node[n](x, y) for w, n in zip(ops.softmax(0), OPERATIONS, strict=True)]
                states.append(torch.stack(mixed).sum(0))
        else:
            choice = self.choice or (self.scores.chosen() if self.scores is not None else ())
            for (a, b, name), node in zip(choice, self.nodes, strict=True):
                assert isinstance(node, nn.ModuleDict)
                states.append(node[name](states[a], states[b]))
        result: Tensor = self.out(torch.cat(states[len(inputs) :], 1))
        return result + inputs[0]
