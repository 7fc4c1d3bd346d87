"""The ``laptop`` preset of every method that trains: nothing else builds these networks in the tests."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.support.needs import batch_for, needs

from normscan.registry import load_all
from normscan.rng import Rng

CARDS = load_all()
PRETRAINED = ("perceptual", "base_preset")  # what others trained: as in ``tiny``
# Networks of a size that is downloaded: their sizes are told by the download, not by a preset.
DOWNLOADED = ("tower", "encoder", "stable")


def arguments(method: str) -> dict[str, object]:
    tiny = CARDS[method].arguments("tiny")
    replaced = {name: tiny[name] for name in PRETRAINED if name in tiny}
    given = {**CARDS[method].arguments("laptop"), **replaced, "dims": CARDS[method].dims[0]}
    return {**given, "weights": "random"} if "weights" in given else given


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(m, marks=pytest.mark.xdist_group(m)) for m in CARDS
        if needs(CARDS[m]).phases and not set(DOWNLOADED) & set(arguments(m))
    ],
)  # fmt: skip
def test_a_loss_can_be_computed(method: str):
    given = arguments(method)
    built = CARDS[method].create(**given)
    shape = (given["size"],) * given["dims"]
    images = batch_for(built, 2, 1, shape, 0, training=True)
    images.columns = [{"age": "50", "sex": "f"}] * 2
    for phase in built.phases():
        for player in phase.players:
            built.train()
            terms = built.loss(dataclasses.replace(images, rng=Rng(3)), phase.name, player.name)
            assert terms and all(torch.isfinite(value) for value in terms.values()), phase.name
