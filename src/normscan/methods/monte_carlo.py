"""Monte-Carlo dropout: a network whose dropout stays on gives samples of its prediction.

Gal and Ghahramani, ICML 2016. The masks come from a batch's ``Rng``, so a result depends neither on
its batch mates nor on the global random state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps
from normscan.methods.reconstruction import Reconstruction
from normscan.rng import Rng

_ELEMENTS = (nn.Dropout,)
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def dropout_layers(module: nn.Module) -> list[nn.Module]:
    """Every layer that drops elements or channels at a rate above zero."""
    kinds = (*_ELEMENTS, *_CHANNELS)
    return [m for m in module.modules() if isinstance(m, kinds) and m.p > 0]


def drop(x: Tensor, p: float, rng: Rng, channels: bool = False) -> Tensor:
    """Zero elements, or whole channels, with probability p and enlarge the others by 1 / (1 - p).

    Args:
        x: (B, ...), or (B, C, ...) where channels are dropped.
        p: probability, 0 to 1.
        rng: of the batch; one draw for each of its samples, or one for all.
        channels: drop whole channels.
    """
    if p >= 1:
        return torch.zeros_like(x)
    shape = (*x.shape[:2], *[1] * (x.ndim - 2)) if channels else x.shape
    return x * (rng.uniform(shape) >= p).to(x) / (1 - p)


@contextmanager
def monte_carlo_dropout(module: nn.Module, rng: Rng) -> Iterator[None]:
    """Switch on every dropout layer of a module in evaluation mode, with masks drawn from ``rng``.

    Everything else, such as batch normalisation, stays as it is. Each forward pass draws new masks.
    The first axis of what a dropout layer sees must be the batch. Dropout that is a function call,
    as inside attention, is no layer and stays off.

    Args:
        module: any network or method with ``nn.Dropout`` or ``nn.Dropout1d`` to ``3d``.
        rng: source of the masks, for example ``batch.rng``.

    Raises:
        ArgumentError: nothing in the module drops anything, so all its passes would be the same.

    Example:
        >>> with monte_carlo_dropout(network, batch.rng):
        ...     restored = torch.stack([network(x) for _ in range(50)]).mean(0)
    """
    layers = dropout_layers(module)
    if not layers:
        raise ArgumentError(
            f"{type(module).__name__} has no dropout layer with a rate above 0, so its Monte-Carlo "
            "passes would all be the same. Train it with dropout, or take a single pass."
        )

    def replace(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        assert isinstance(layer.p, float | int)
        return drop(inputs[0], layer.p, rng, isinstance(layer, _CHANNELS))

    modes = [layer.training for layer in layers]
    hooks = [layer.eval().register_forward_hook(replace) for layer in layers]
    try:
        yield
    finally:
        for layer, hook, mode in zip(layers, hooks, modes, strict=True):
            hook.remove()
            layer.train(mode)


def moments(draw: Callable[[], Tensor], passes: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (divided by ``passes``) of so many draws, without keeping them.

    Raises:
        ArgumentError: fewer than one pass.
    """
    if passes < 1:
        raise ArgumentError(f"passes={passes}; Monte-Carlo dropout needs at least one.")
    mean = draw()
    spread = torch.zeros_like(mean)
    for n in range(2, passes + 1):
        x = draw()
        step = x - mean
        mean = mean + step / n
        spread = spread + step * (x - mean)  # Welford 1962
    return mean, spread / passes


def monte_carlo(network: nn.Module, x: Tensor, rng: Rng, passes: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of a network's output over passes with dropout on, each as the output."""
    with monte_carlo_dropout(network, rng):
        return moments(partial(network, x), passes)


class MonteCarloReconstruction(Reconstruction):
    """Restoration as the mean of passes with dropout on; their variance is the uncertainty.

    Args:
        *parts: of ``Reconstruction``.
        passes: at test; 0 for a single pass without dropout, which has no uncertainty.
        floor: smallest standard deviation by which the map is divided, in the scale of the network;
            None for a map that isn't divided.
        **options: of ``Reconstruction``.
    """

    def __init__(
        self, *parts: Any, passes: int, floor: float | None = None, **options: Any
    ) -> None:
        super().__init__(*parts, **options)
        self.passes, self.floor = passes, floor

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        if not self.passes:
            return super().maps(batch)
        x = self.scaled(batch).image
        restored, variance = monte_carlo(self.network, x, batch.rng, self.passes)
        if self._masked:
            restored = torch.where(batch.foreground, restored, x)
        variance = variance.mean(dim=1, keepdim=True)
        result = self._residual(x, restored)
        if self.floor is not None:
            result = result / variance.sqrt().clamp_min(self.floor)
        return Maps(map=result, reconstruction=self.shown(restored), uncertainty=variance)
