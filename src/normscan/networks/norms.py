"""What batch norms remember, under control."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def kept_statistics(network: nn.Module) -> Iterator[None]:
    """Within it a training network normalises by the batch and its running statistics stay.

    For a second pass over something else than images, such as restorations, whose statistics must
    not be mixed into those that serve at test.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    before = [m.track_running_stats for m in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracked in zip(norms, before, strict=True):
            norm.track_running_stats = tracked
