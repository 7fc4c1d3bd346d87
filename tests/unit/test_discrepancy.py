"""Discrepancies of two ensembles, and the losses and patches of the network that refines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.objectives.gradients import gradient_difference
from normscan.objectives.segmentation import focal, soft_dice, weighted_cross_entropy
from normscan.registry import card
from normscan.rng import Rng
from normscan.scores.discrepancy import discrepancies
from normscan.synthesis.mixing import patch_mix, square_patches

SMALL = {"size": 16, "width": 4, "hidden": 8, "latent": 4, "members": 3}


def images(n=4, channels=2, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, size, size, generator=generator)
    inside = torch.ones(n, 1, size, size, dtype=torch.bool)
    return Batch(x, inside, Rng(list(range(n))), torch.full((n,), 0.5))


def built(method="ddad", **arguments):
    torch.manual_seed(0)
    return card(method).create(**card(method).arguments(channels=2, **SMALL, **arguments)).eval()


# --- maps


@pytest.mark.parametrize("normalised", [False, True])
def test_maps_against_numpy(rng, normalised):
    x = rng.normal(size=(2, 3, 5, 4))
    a, b = rng.normal(size=(2, 3, 2, 3, 5, 4))
    variance = rng.uniform(0.5, 2, size=x.shape)
    given = torch.from_numpy(variance) if normalised else None
    found = discrepancies(*map(torch.from_numpy, (x, a, b)), given)
    var = variance if normalised else np.ones_like(variance)
    mean_a, mean_b = a.sum(0) / 3, b.sum(0) / 3
    spread = sum((m - mean_b) ** 2 for m in b) / 2
    expected = {
        "inter": abs(mean_a - mean_b) / var**0.5,
        "intra": (spread / var) ** 0.5,
        "rec": (x - mean_b) ** 2 / var,
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.mean(1, keepdims=True), rtol=1e-12)


def test_no_variance_is_a_variance_of_one():
    x, a, b = torch.rand(2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4), torch.rand(3, 2, 1, 4, 4)
    ones = discrepancies(x, a, b, torch.ones_like(x))
    for name, values in discrepancies(x, a, b).items():
        torch.testing.assert_close(values, ones[name])


@pytest.mark.parametrize("backbone", ["ae", "ae_u", "memae"])
def test_method_takes_its_members_apart(backbone):
    """The members run by hand give the same maps as the method."""
    method, batch = built(backbone=backbone), images()
    x = 2 * batch.image - 1
    out = {n: m.network(x).detach() for n, m in method.members.items()}
    variance = None
    if backbone == "ae_u":
        assert out["B1"].shape[1] == 4
        variance = sum(out[f"B{k}"][:, 2:].exp() for k in (1, 2, 3)) / 3
        out = {n: o[:, :2] for n, o in out.items()}
    a, b = (torch.stack([out[f"{e}{k}"] for k in (1, 2, 3)]) for e in "AB")
    expected = discrepancies(x, a, b, variance)
    for name, values in expected.items():
        method.score = name
        maps = method.maps(batch)
        torch.testing.assert_close(maps.map, values)
        torch.testing.assert_close(maps.uncertainty, expected["intra"])
    torch.testing.assert_close(2 * maps.reconstruction - 1, b.mean(0))


def test_each_member_has_a_phase_on_its_part():
    phases = {p.name: p for p in built().phases()}
    assert [*phases] == ["A1", "A2", "A3", "B1", "B2", "B3"]
    assert {n[0]: p.part for n, p in phases.items()} == {"A": "healthy+unlabelled", "B": "healthy"}
    trained = [
        {id(q) for player in p.players for q in player.parameters()} for p in phases.values()
    ]
    assert len(set.union(*trained)) == sum(map(len, trained)), "two phases share a parameter"


def test_one_member_has_no_deviation():
    with pytest.raises(ArgumentError, match="members=1"):
        card("ddad").create(**card("ddad").arguments(**{**SMALL, "members": 1}))


# --- refinement


@pytest.mark.parametrize(
    ("refined", "inputs"),
    [("dual", ["inter", "intra"]), ("intra", ["intra"])],
)
def test_refiner_reads_the_discrepancies(refined, inputs):
    method, batch = built("ddad_asr", refined=refined, filters=4), images()
    found, _ = method.discrepancies(batch.image)
    stacked = torch.cat([found[name] for name in inputs], 1)
    logits = method.refiner(stacked).detach()
    torch.testing.assert_close(
        method.maps(batch).map[:, 0], (logits[:, 1] - logits[:, 0]).sigmoid()
    )
    last = method.phases()[-1]
    assert last.name == "refine" and last.part == "healthy"
    assert method.refiner[0].in_channels == len(inputs)


def test_refining_trains_nothing_else():
    method, batch = built("ddad_asr", filters=4), images()
    batch.rng = Rng(0)
    sum(method.loss(batch, "refine", "network").values()).backward()
    reached = {n.split(".")[0] for n, p in method.named_parameters() if p.grad is not None}
    assert reached == {"refiner"}


def test_focal_loss_in_closed_form():
    p = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)
    mask = torch.tensor([True, False, True])
    q = np.array([0.9, 0.8, 0.5])
    expected = -((1 - q) ** 2 * np.log(q)).mean()
    assert focal(p, mask, smoothing=0).item() == pytest.approx(expected, rel=1e-12)
    smooth = 0.9 * q + 0.1 * (1 - q)
    expected = -((1 - smooth) ** 3 * np.log(smooth)).mean()
    assert focal(p, mask, gamma=3, smoothing=0.1).item() == pytest.approx(expected, rel=1e-12)


def test_focal_loss_without_focus_is_cross_entropy():
    p, mask = torch.rand(50, dtype=torch.float64), torch.rand(50) > 0.5
    expected = F.binary_cross_entropy(p, mask.double())
    torch.testing.assert_close(focal(p, mask, gamma=0, smoothing=0), expected)


def test_focal_loss_stays_finite_where_the_network_is_sure_and_wrong():
    p = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = focal(p, torch.tensor([True, False]))
    loss.backward()
    assert loss.item() == pytest.approx(-np.log(1e-5), rel=1e-3)
    assert torch.isfinite(p.grad).all()


# --- patches


def test_mixed_pixels_are_a_blend_and_the_others_are_untouched(rng):
    image, partner = torch.rand(64, 2, 20, 20), torch.rand(64, 2, 20, 20)
    mixed, mask = patch_mix(image, partner, Rng(0))
    changed = 0
    for x, y, m, inside in zip(image, partner, mixed, mask, strict=True):
        assert torch.equal(m[:, ~inside[0]], x[:, ~inside[0]])
        if not inside.any():
            continue
        changed += 1
        share = (m - x)[:, inside[0]] / (y - x)[:, inside[0]]
        assert 0 < share.median() < 1
        torch.testing.assert_close(
            m[:, inside[0]], torch.lerp(x, y, share.median())[:, inside[0]], rtol=1e-3, atol=1e-4
        )
        rows, columns = inside[0].nonzero().T
        assert inside.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "no rectangle"
    assert 20 < changed < 44


@pytest.mark.parametrize("spatial", [(64, 64), (40, 60), (20, 20, 20)])
def test_squares_have_the_sizes_and_places_that_are_stated(spatial):
    masks = square_patches(3000, spatial, Rng(1))
    side = min(spatial)
    least, most = 2 * round(0.05 * side), 2 * (round(0.2 * side) - 1)
    places = []
    for axis in range(len(spatial)):
        others = tuple(i + 2 for i in range(len(spatial)) if i != axis)
        along = masks.any(dim=others)[:, 0] if others else masks[:, 0]
        lengths, n = along.sum(1), spatial[axis]
        inner = ~(along[:, 0] | along[:, -1])
        assert lengths[inner].min() == least and lengths[inner].max() == most
        at = torch.arange(n).float()
        centre = ((along * at).sum(1) / lengths + 0.5)[inner]
        assert centre.min() >= int(0.1 * n) and centre.max() < int(0.9 * n + 1e-9)
        assert centre.min() < 0.2 * n and centre.max() > 0.8 * n
        places.append(lengths)
    if len(set(spatial)) == 1:
        whole = masks.flatten(1).sum(1)
        assert whole.max() == most ** len(spatial)


def test_patches_can_be_switched_off_and_on():
    image, partner = torch.zeros(30, 1, 16, 16), torch.ones(30, 1, 16, 16)
    assert not patch_mix(image, partner, Rng(0), 0.0)[1].any()
    mixed, mask = patch_mix(image, partner, Rng(0), 1.0)
    assert mask.flatten(1).any(1).all() and torch.equal(mixed > 0, mask)


# --- losses of segmentations and gradients


def test_dice_and_cross_entropy_count_weighted_pixels_only():
    logits, mask = torch.randn(3, 1, 6, 6), torch.rand(3, 1, 6, 6) > 0.6
    weight = (torch.rand(3, 1, 6, 6) > 0.3).float()
    counted = weight.bool()
    p, t = logits.sigmoid()[counted], mask[counted].float()
    expected = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    torch.testing.assert_close(soft_dice(logits.sigmoid(), mask, weight), expected)
    expected = F.binary_cross_entropy(p, t)
    torch.testing.assert_close(weighted_cross_entropy(logits, mask, weight), expected)
    nothing = torch.zeros_like(weight)
    assert weighted_cross_entropy(logits, mask, nothing).item() == 0
    assert soft_dice(logits.sigmoid(), mask, nothing).item() == 0


def test_perfect_and_worst_dice():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    ones = torch.ones(1, 1, 4, 4)
    assert soft_dice(mask.float(), mask, ones).item() == 0
    assert soft_dice((~mask).float(), mask, ones, smooth=0).item() == 1


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 3, 4, 5, 3)])
@pytest.mark.parametrize("power", [1, 2])
def test_gradient_difference_against_numpy(rng, shape, power):
    x, y = rng.normal(size=(2, *shape))
    expected = sum(
        (abs(abs(np.diff(x, axis=k)) - abs(np.diff(y, axis=k))) ** power).mean()
        for k in range(2, len(shape))
    )
    found = gradient_difference(torch.from_numpy(x), torch.from_numpy(y), power)
    assert found.item() == pytest.approx(expected, rel=1e-12)
