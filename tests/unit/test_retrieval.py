"""Retrieval of similar images and of patches in them, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.retrieval import BlockWords, local_distance


def test_a_patch_is_compared_with_those_around_its_place():
    generator = torch.Generator().manual_seed(0)
    own = F.normalize(torch.randn(4, 5, 6, generator=generator), dim=0)
    others = F.normalize(torch.randn(3, 4, 5, 6, generator=generator), dim=1)
    found = local_distance(own, others, 3)
    for row in range(5):
        for column in range(6):
            rows = slice(max(0, row - 1), row + 2)
            columns = slice(max(0, column - 1), column + 2)
            there = others[:, :, rows, columns].movedim(1, -1).reshape(-1, 4)
            known = float((1 - there @ own[:, row, column]).min())
            assert float(found[row, column]) == pytest.approx(known, abs=1e-6)


def test_words_and_the_divergence_of_their_histograms():
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(4, 2, 10, 10, generator=generator)
    words = BlockWords(2, 4, 5)
    words.learn([maps[:2], maps[2:]], Rng(0))
    code = (maps.movedim(1, -1)[..., None, :] - words.words).square().sum(-1).argmin(-1)
    histograms = words.histograms(maps)
    for block in range(25):
        rows, columns = divmod(block, 5)
        part = code[:, 2 * rows : 2 * rows + 2, 2 * columns : 2 * columns + 2].flatten(1)
        known = F.one_hot(part, 4).float().mean(1)
        torch.testing.assert_close(histograms[:, block], known)
    words.bank = histograms
    p = histograms.double().numpy() + 1e-8
    for i in range(4):
        every = [np.sort([_kl(p[i, b], p[j, b]) for b in range(25)])[:20].sum() for j in range(4)]
        assert words.nearest(maps[i : i + 1], 4)[0].tolist() == np.argsort(every).tolist()


def _kl(a: np.ndarray, b: np.ndarray) -> float:
    return float(entropy(a / a.sum(), b / b.sum()))


def test_more_words_than_vectors_are_told():
    with pytest.raises(ArgumentError, match="12 visual words"):
        BlockWords(2).learn([torch.zeros(1, 2, 3, 3)], Rng(0))


def test_each_scale_has_its_square():
    with pytest.raises(ArgumentError, match="one for each of the 2 taps"):
        card("cpr").create(**card("cpr").arguments("tiny", sides=(3,)))
    with pytest.raises(ArgumentError, match="Use 24"):
        card("cpr").create(**card("cpr").arguments("tiny", width=20))
