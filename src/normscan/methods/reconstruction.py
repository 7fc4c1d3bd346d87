"""The mechanism that most systems share: restore a healthy version and look at the difference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase

Corruption = Callable[[Batch], Tensor]
Residual = Callable[[Tensor, Tensor], Tensor]


def absolute(x: Tensor, restored: Tensor) -> Tensor:
    """|x - x^| averaged over the channels, (B, 1, *spatial)."""
    return (x - restored).abs().mean(dim=1, keepdim=True)


def squared(x: Tensor, restored: Tensor) -> Tensor:
    """(x - x^)^2 averaged over the channels, (B, 1, *spatial)."""
    return (x - restored).square().mean(dim=1, keepdim=True)


class Reconstruction(Method):
    """A network that restores the healthy image; the map is a residual.

    Args:
        network: image to restored image, (B, C, *spatial).
        loss: restored image and batch to named terms.
        residual: image and restored image to (B, 1, *spatial).
        training: phases for the network.
        corrupt: batch to the network's input in training; the image itself by default.
        masked: the loss sees the foreground only, so outside it the image stands for its
            restoration.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Batch], dict[str, Tensor]],
        residual: Residual,
        training: Callable[[nn.Module], list[Phase]],
        corrupt: Corruption | None = None,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss = loss
        self._residual = residual
        self._training = training
        self._corrupt = corrupt
        self._masked = masked

    def phases(self) -> list[Phase]:
        return self._training(self.network)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = self._corrupt(batch) if self._corrupt else batch.image
        return self._loss(self.network(x), batch)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restored = self.network(batch.image)
        if self._masked:
            restored = torch.where(batch.foreground, restored, batch.image)
        return Maps(map=self._residual(batch.image, restored), reconstruction=restored)
