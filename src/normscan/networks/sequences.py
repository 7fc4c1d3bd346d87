"""Codes of slices, each of which knows its neighbours."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normscan.networks.autoencoder import CodedNetwork

Between = Literal["gru", "transformer", "none"]


class SliceSequence(nn.Module):
    """A network of slices whose Gaussian codes a sequence model corrects by those around them.

    Args:
        network: of slices, with two heads of a dense code.
        latent: numbers in the code, a multiple of ``heads``.
        length: slices in a sequence.
        between: a bidirectional ``gru``, a ``transformer`` with learnt places, or ``none``.
        layers: of the sequence model.
        heads: of the transformer's attention.
    """

    def __init__(
        self, network: CodedNetwork, latent: int, length: int, between: Between, layers: int,
        heads: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.between = network, between
        if between == "none":
            return
        if between == "gru":
            self.model: nn.Module = nn.GRU(
                2 * latent, latent, layers, batch_first=True, bidirectional=True
            )
        else:
            self.places = nn.Parameter(0.02 * torch.randn(1, length, 2 * latent))
            block = nn.TransformerEncoderLayer(
                2 * latent, heads, 4 * latent, dropout=0.0, batch_first=True, norm_first=True
            )
            self.model = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.leave = nn.Linear(2 * latent, 2 * latent)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the codes, (B, slices, latent) each.

        Args:
            x: (B, C, slices, H, W).
        """
        slices = x.transpose(1, 2).flatten(0, 1)
        codes = torch.cat(self.network.encode(slices), 1).unflatten(0, (len(x), -1))
        if self.between == "gru":
            codes = codes + self.leave(self.model(codes)[0])
        elif self.between == "transformer":
            codes = codes + self.leave(self.model(codes + self.places))
        mean, spread = codes.chunk(2, 2)
        return mean, spread

    def decode(self, codes: Tensor) -> Tensor:
        """Slices (B, C, slices, H, W) of codes (B, slices, latent)."""
        slices: Tensor = self.network.decode(codes.flatten(0, 1))
        return slices.unflatten(0, tuple(codes.shape[:2])).transpose(1, 2)
