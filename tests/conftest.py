"""Shared fixtures: one thread per test process, and a toy cohort with planted lesions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from normscan.decide import Calibration
from tests.support.batches import seed as seed
from tests.toy import write_toy_cohort

torch.set_num_threads(1)

# The same examples at each run: a search that differs from run to run belongs to a person who asks
# for it, with `--hypothesis-profile search`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("same")

SHARED = Path(__file__).parents[1].parent / "shared"


settled = Calibration.settled


@pytest.fixture(scope="session", autouse=True)
def one_fit():
    """Fit once where nothing is said of the calibration: toys are small, ``auto`` would fit 5 times.

    What ``auto`` does is tested in ``tests/unit/test_cross.py``; commands in processes of their own
    do it too.
    """

    def split(self, val, healthy, fpr, processes=1):
        chosen = Calibration("split") if self.kind == "auto" and val else self
        return settled(chosen, val, healthy, fpr, processes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibration, "settled", split)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_cache():
    """Keep no prepared scans nor baselines between tests; those of the cache turn it on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAN_CACHE", "off")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_secret(tmp_path_factory):
    """Pseudonyms of tests are under a secret of their own, outside the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMSCAN_SECRET", str(tmp_path_factory.mktemp("secret") / "secret"))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data; tests that use it skip where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("real data (../shared) are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory):
    """Return a function (dims, channels) to the path of a toy cohort's table."""
    made: dict[tuple[int, int], Path] = {}

    def make(dims: int = 2, channels: int = 1) -> Path:
        if (dims, channels) not in made:
            folder = tmp_path_factory.mktemp(f"toy{dims}d{channels}c")
            made[dims, channels] = write_toy_cohort(folder, dims, channels)
        return made[dims, channels]

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
