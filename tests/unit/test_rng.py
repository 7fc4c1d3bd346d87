"""Randomness: the same seed gives the same numbers, and batch mates don't matter."""

from __future__ import annotations

import pytest
import torch

from normscan.rng import Rng, derive_seed

DRAWS = {
    "normal": lambda rng, shape: rng.normal(shape),
    "uniform": lambda rng, shape: rng.uniform(shape),
    "integers": lambda rng, shape: rng.integers(-3, 40, shape),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_seed_decides(name):
    draw = DRAWS[name]
    assert torch.equal(draw(Rng(3), (4, 9)), draw(Rng(3), (4, 9)))
    assert not torch.equal(draw(Rng(3), (4, 9)), draw(Rng(4), (4, 9)))


@pytest.mark.parametrize("name", DRAWS)
def test_batch_mates_do_not_matter(name):
    draw = DRAWS[name]
    mates, alone = Rng([5, 6, 7]), Rng([6])
    for shape in ((2, 3), (), (4,)):  # Also not for what is drawn later.
        together = draw(mates, (3, *shape))
        assert together.shape == (3, *shape)
        assert torch.equal(together[1:2], draw(alone, (1, *shape)))
        if shape:
            assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", DRAWS)
def test_one_generator_serves_the_whole_batch(name):
    draw = DRAWS[name]
    values = draw(Rng(1), (3, 8))
    assert len({tuple(row) for row in values.tolist()}) == 3


def test_one_seed_is_not_a_seed_for_each():
    assert Rng(1).shared and not Rng([1]).shared
    with pytest.raises(ValueError, match="2 samples asked of 3 generators"):
        Rng([1, 2, 3]).normal((2, 4))


def test_numbers_have_their_distribution():
    rng = Rng([1, 2])
    normal, uniform = rng.normal((2, 20_000)), rng.uniform((2, 20_000))
    assert normal.mean().abs() < 0.02 and normal.std().item() == pytest.approx(1, abs=0.02)
    assert uniform.min() >= 0 and uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)
    assert set(rng.integers(-2, 3, (2, 500)).flatten().tolist()) == {-2, -1, 0, 1, 2}


def test_the_global_state_is_untouched():
    before = torch.get_rng_state()
    for rng in (Rng(1), Rng([1, 2])):
        for draw in DRAWS.values():
            draw(rng, (2, 5))
    assert torch.equal(before, torch.get_rng_state())


def test_derived_seeds_depend_on_every_part():
    seeds = {
        derive_seed(*parts) for parts in [(1,), (2,), (1, 2), (2, 1), (1, "2"), (12,), ("1", 2)]
    }
    assert len(seeds) == 7 and all(0 <= s < 2**63 for s in seeds)
    # Written down once: the same on every machine and in every process.
    assert derive_seed(0, "train", 3) == 3438213601134198389
