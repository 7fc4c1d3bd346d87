"""What batch norms remember, under control."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def kept_statistics(
    network: nn.Module, by: Literal["batch", "running", "own"] = "batch"
) -> Iterator[None]:
    """Within it the running statistics of a network in training stay as they are.

    For a pass over something else than images, such as restorations, whose statistics must not be
    mixed into those that serve at test. Dropout and everything else keep their mode.

    Args:
        network: any network.
        by: normalise by the statistics of the ``batch``, or by the ``running`` ones; at test the running
            ones serve in both cases, and those of what passes with ``own``.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [(m.training, m.track_running_stats) for m in norms]
    for norm in norms:
        if by == "running":
            norm.eval()
        else:
            if by == "own":
                norm.train()
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.train(training)
            norm.track_running_stats = tracked


class OwnNorm2d(nn.Module):
    """Batch norm that normalises by the batch in training and by each image alone at test.

    What released codes do that leave a network in training mode and pass one image at a time.

    Args:
        channels: of the features.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True)
        return F.instance_norm(x, weight=self.weight, bias=self.bias)
