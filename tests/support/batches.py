"""What tests of single methods begin with: the same random weights each time, and a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from normscan.methods.base import Batch
from normscan.rng import Rng


@pytest.fixture
def seed() -> Iterator[None]:
    """The same draws of torch in each test, and none of them left behind."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def batch(n: int = 4, size: int = 32, **more: Any) -> Batch:
    """Images (n, 1, size, size) uniform in 0..1, all of them foreground."""
    image = torch.rand(n, 1, size, size)
    return Batch(image, torch.ones_like(image, dtype=torch.bool), Rng(0), torch.zeros(n), **more)
