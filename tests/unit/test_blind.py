"""What the networks of context and patch see, by gradients."""

from __future__ import annotations

import pytest
import torch

from normscan.errors import ArgumentError
from normscan.networks.blind import BlindNetwork, plain_convolutions


def seen(network: torch.nn.Module, size: int, row: int, column: int) -> torch.Tensor:
    """Pixels that a place's features depend on."""
    x = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)).double()
    x.requires_grad_()
    network.double().eval()(x)[0, :, row, column].sum().backward()
    assert x.grad is not None
    return x.grad[0, 0] != 0


@pytest.mark.parametrize(("row", "column"), [(16, 16), (13, 18), (9, 22)])
def test_context_and_patch_part_the_image_between_them(row: int, column: int):
    torch.manual_seed(0)
    around = seen(BlindNetwork(1, 4, 2, 5), 32, row, column)
    patch = seen(plain_convolutions(1, 4, 5), 32, row, column)
    square = torch.zeros(32, 32, dtype=torch.bool)
    square[row - 2 : row + 3, column - 2 : column + 3] = True
    assert not (around & square).any(), "the context sees the patch"
    assert torch.equal(patch, square)
    # Next to the square it sees something on each side.
    assert around[row - 3, column] and around[row + 3, column]
    assert around[row, column - 3] and around[row, column + 3]


def test_a_square_has_a_middle():
    with pytest.raises(ArgumentError, match="Use 5"):
        BlindNetwork(1, 4, 2, 4)
