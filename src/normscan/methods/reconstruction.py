"""The mechanism that most systems share: restore a healthy version and look at the difference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase

Corruption = Callable[[Batch], Tensor]
Residual = Callable[[Tensor, Tensor], Tensor]


def absolute(x: Tensor, restored: Tensor) -> Tensor:
    """|x - x^| averaged over the channels, (B, 1, *spatial)."""
    return (x - restored).abs().mean(dim=1, keepdim=True)


def positive(x: Tensor, restored: Tensor) -> Tensor:
    """max(x - x^, 0) averaged over the channels, (B, 1, *spatial): what is brighter than healthy."""
    return (x - restored).clamp_min(0).mean(dim=1, keepdim=True)


def squared(x: Tensor, restored: Tensor) -> Tensor:
    """(x - x^)^2 averaged over the channels, (B, 1, *spatial)."""
    return (x - restored).square().mean(dim=1, keepdim=True)


class Reconstruction(Method):
    """A network that restores the healthy image; the map is a residual.

    Args:
        network: image to restored image, (B, C, *spatial).
        loss: restored image and batch to named terms.
        residual: image and restored image to (B, 1, *spatial).
        training: the shared arguments of ``schedule``, or phases for the network.
        corrupt: batch to the network's input in training; the image itself by default.
        masked: the loss sees the foreground only, so outside it the image stands for its
            restoration.
        centred: network, loss and residual see 2 x - 1, about -1 to 1.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: Callable[[Tensor, Batch], dict[str, Tensor]],
        residual: Residual,
        training: Schedule | Callable[[nn.Module], list[Phase]],
        corrupt: Corruption | None = None,
        masked: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self._loss = loss
        self._residual = residual
        self._training = training
        self._corrupt = corrupt
        self._masked = masked
        self._centred = centred

    def phases(self) -> list[Phase]:
        training = self._training
        return training(self.network) if callable(training) else [phase(self.network, training)]

    def scaled(self, batch: Batch) -> Batch:
        """The batch in the scale that the network works in."""
        return replace(batch, image=2 * batch.image - 1) if self._centred else batch

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        batch = self.scaled(batch)
        x = self._corrupt(batch) if self._corrupt else batch.image
        return self._loss(self.network(x), batch)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = self.scaled(batch).image
        restored = self.restored(x, batch)
        if self._masked:
            restored = torch.where(batch.foreground, restored, x)
        return Maps(map=self._residual(x, restored), reconstruction=self.shown(restored))

    def restored(self, x: Tensor, batch: Batch) -> Tensor:
        """What the healthy version of scaled images (B, C, *spatial) looks like, at test."""
        result: Tensor = self.network(x)
        return result

    def shown(self, restored: Tensor) -> Tensor:
        """A restoration in the scale of the images."""
        return (restored + 1) / 2 if self._centred else restored
