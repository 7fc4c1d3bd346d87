"""Many tasks, copied cuboids, a transformer in a U-Net and the adapting detector, beside formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.synthesis.copy_paste import (
    CopyPaste,
    elastic,
    one_cycle,
    with_places,
)
from normscan.methods.synthesis.many_tasks import FIVE, warmed
from normscan.methods.synthesis.meta import Adaptation, MetaDetector
from normscan.methods.synthesis.transformer import entropy_and_dice
from normscan.networks.classified import ClassifiedUNet
from normscan.networks.discriminative import BatchNormUNet
from normscan.networks.nnunet import Placed, PlainUNet
from normscan.networks.tokens import TokenMixer
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis import donors, placement, shapes, tasks
from normscan.synthesis.corruption import Corrupted
from normscan.synthesis.draws import grid


def made(method: str, **changes):
    entry = card(method)
    return entry.create(**{**entry.arguments("tiny"), "dims": 2, **changes})


def batch(n: int, *spatial: int, seed: int = 0, seeds: list[int] | None = None) -> Batch:
    image = torch.rand(n, 1, *spatial, generator=torch.Generator().manual_seed(seed))
    return Batch(
        image, torch.ones_like(image, dtype=torch.bool), Rng(seed if seeds is None else seeds),
        torch.linspace(0, 1, n), subject=torch.arange(n),
    )  # fmt: skip


@pytest.mark.parametrize(
    "network",
    [
        lambda: Placed(PlainUNet(2, 1 + Placed.extra(2), 4, 3), 2),
        lambda: BatchNormUNet(1, 1, 2, middle=TokenMixer(32, 2, 8, 1, 2)),
        lambda: ClassifiedUNet(2, 1, 4, 2),
    ],
)
def test_networks_take_any_size(network):
    output = network().eval()(torch.rand(1, 1, 37, 50))
    output = output[0] if isinstance(output, tuple) else output
    assert output.shape == (1, 1, 37, 50)


# -------------------------------------------------------------------------- many tasks


def test_the_rate_is_that_of_torchs_schedulers():
    steps, after = 100, 10_500
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    line = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=steps)
    slow = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9997122182804811)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [line, slow], [steps])
    ours, theirs = warmed(steps), []
    for _ in range(steps + 200):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        both.step()
    assert theirs == pytest.approx([ours(k, 0) for k in range(steps + 200)], rel=1e-5)
    assert ours(after, 0) == pytest.approx(0.05, rel=0.01) == ours(10 * after, 0)


def test_each_network_is_chosen_by_the_tasks_that_it_does_not_learn():
    method = made("many_tasks", tasks=FIVE, train_tasks=4)
    names = [phase.name for phase in method.phases()]
    assert len(names) == len(set(names)) == len(method.networks) == 5
    for phase, left_out in zip(names, reversed(FIVE), strict=True):
        assert left_out not in phase.split(" + ")
        assert len(method.corruption(phase, training=True).parts) == 4
        (other,) = method.corruption(phase, training=False).parts
        assert other is method._parts[left_out]
    alone = made("many_tasks", tasks=("sink",))
    assert len(alone.corruption("sink", training=False).parts) == 1
    assert {*alone.eval().loss(batch(3, 32, 32), "sink", "network")} == {"l2", "healthy"}
    assert {*alone.train().loss(batch(3, 32, 32), "sink", "network")} == {"l2"}


def test_tasks_that_there_are_not_are_refused():
    with pytest.raises(ArgumentError, match="'sink'"):
        made("many_tasks", tasks=("sinks",))
    with pytest.raises(ArgumentError, match="1 to 2"):
        made("many_tasks", train_tasks=3)


def test_the_map_is_the_mean_of_the_networks_within_bounds():
    method = made("many_tasks").eval()
    for network, value in zip(method.networks, (-0.5, 0.9), strict=True):
        network.forward = lambda x, value=value: torch.full_like(x, value)
    torch.testing.assert_close(method.maps(batch(1, 8, 8)).map, torch.full((1, 1, 8, 8), 0.2))
    method.networks[1].forward = torch.zeros_like
    assert not method.maps(batch(1, 8, 8)).map.any()


# ----------------------------------------------------------------------- copied cuboids


def test_one_cycle_is_torchs():
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))])
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=50, anneal_strategy="linear"
    )
    for step in range(50):
        assert theirs.get_last_lr()[0] == pytest.approx(one_cycle(step, 50), rel=1e-4, abs=1e-7)
        optimizer.step()
        if step < 49:
            theirs.step()


def test_elastic_deformation_is_smoothed_noise():
    ramp = (torch.arange(48.0)[:, None] + torch.zeros(48)).expand(6, 1, -1, -1)
    seen = elastic(ramp, batch(6, 48, 48, seeds=list(range(6))))
    still = (seen == ramp).flatten(1).all(1)
    assert 0 < still.sum() < 6
    for i in range(6):
        generator = torch.Generator().manual_seed(i)
        noise = 2 * torch.rand(2, 48, 48, generator=generator) - 1
        moves = 20 * gaussian_filter(noise[0].numpy(), 5, mode="constant")
        if not still[i]:
            inside = (slice(20, 28),) * 2
            found = (seen - ramp)[i, 0][inside].numpy()
            np.testing.assert_allclose(found, moves[inside], atol=0.02)


def test_a_turned_cuboid_holds_a_straight_piece_turned():
    x = (grid((40, 40)) * torch.tensor([1.0, 0.1]).reshape(2, 1, 1)).sum(0)[None, None]
    everywhere = torch.ones_like(x, dtype=torch.bool)
    outline = shapes.cuboids((0.2, 0.3), turn=45)(1, (40, 40), Rng(3))
    scene = placement.Scene(x, x, everywhere, everywhere, Rng(0), outline)
    scene.put(torch.tensor([[25.0, 18.0]]))
    scene.source = torch.tensor([[12.0, 20.0]])
    given = donors.turned(scene)
    offset = torch.tensor([2.0, -1.0])
    at = scene.source[0] + outline.matrix[0] @ offset
    assert not torch.allclose(outline.matrix[0], torch.eye(2), atol=0.05)
    assert given[0, 0, 27, 17].item() == pytest.approx((at[0] + 0.1 * at[1]).item(), abs=1e-4)


def test_misses_cost_less_and_less():
    method = made("pseudoanomaly_3d")
    rhythm = method.phases()[0].players[0].schedule
    found = []
    for step in range(100):
        found.append(float(method.miss))
        rhythm(step, 100)
    assert (
        found[0] == 100
        and found[15] == pytest.approx(50)
        and found[30:] == [pytest.approx(0.05)] * 70
    )
    method.train()
    terms = method.loss(batch(2, 32, 32), "segment", "network")
    assert set(terms) == {"healthy", "planted", "class", "missed"}
    assert "missed" not in method.eval().loss(batch(2, 32, 32), "segment", "network")


def test_the_highest_of_all_patches_counts():
    class Told(nn.Module):
        """Says in a patch which one it is."""

        def forward(self, x):
            number = x[:, 1:].mean((2, 3)).argmax(1).float()
            return (number[:, None, None, None] - 4).expand_as(x[:, :1]), number

    method = CopyPaste(Told(), card("pseudoanomaly_3d").arguments("tiny"), patches=True)
    maps = method.maps(batch(2, 16, 16))
    assert maps.score.tolist() == pytest.approx([1 / (1 + math.exp(-8))] * 2)
    rows = torch.tensor([0, 1, 2, 2])[:, None]
    number = (3 * rows + rows[:, 0]).repeat_interleave(4, 0).repeat_interleave(4, 1).float()
    torch.testing.assert_close(maps.map[0, 0], (number - 4).sigmoid())
    assert with_places(torch.zeros(2, 1, 4, 4), torch.tensor([0, 8]))[1, 9].all()
    method = made("pseudoanomaly_3d", patches=True, size=64).train()
    assert all(torch.isfinite(v) for v in method.loss(batch(2, 64, 64), "", "").values())


# ------------------------------------------------------------------------- transformer


def test_tokens_see_each_other_and_know_their_places():
    mixer = TokenMixer(4, 5, 8, 1, 2).eval()
    x = torch.zeros(2, 4, 5, 5)
    x[1, :, 0, 0] = 5
    output = mixer(x)
    assert (output[0, :, 4, 4] - output[1, :, 4, 4]).abs().max() > 1e-6
    assert output[0].std((1, 2)).max() > 1e-6, "the same at all places of a flat image"


def test_entropy_and_dice_are_their_formulas():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 6, 6, generator=generator)
    region = torch.rand(2, 1, 6, 6, generator=generator) > 0.5
    terms = entropy_and_dice(logits, Corrupted(logits, logits, region))
    p, t = 1 / (1 + np.exp(-logits.numpy())), region.numpy()
    assert terms["bce"].item() == pytest.approx(-np.log(np.where(t, p, 1 - p)).mean(), rel=1e-5)
    dice = 1 - (2 * p[t].sum() + 1) / (p.sum() + t.sum() + 1)
    assert terms["dice"].item() == pytest.approx(dice, rel=1e-5)


# ------------------------------------------------------------------- adapting detector


class Line(nn.Module):
    """a b x, of which a adapts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.a * self.b * x


def adapting(updates: int = 2) -> MetaDetector:
    training = card("meta_detector").arguments("tiny")
    return MetaDetector(Line(), ("a",), tasks.fpi(0.8), Adaptation(updates, 0.3, 3), 1, 4, training)


def doubled(n: int, seed: int = 0) -> Batch:
    images = batch(n, 16, 16, seed=seed)
    images.image = images.image.double()
    return images


def test_gradients_run_through_the_steps():
    method = adapting().train()

    def total() -> torch.Tensor:
        return sum(method.loss(doubled(4), "episodes", "network").values())

    total().backward()
    for weight in method.network.parameters():
        slope, before = weight.grad.item(), weight.item()
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight.fill_(before + step)
            ends.append(float(total().detach()))
            with torch.no_grad():
                weight.fill_(before)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_only_its_layers_adapt_and_every_scan_begins_anew():
    method = adapting().eval()
    images = doubled(6)
    method.fit([images])
    assert len(method.references) == 4 and method.heights.tolist() == pytest.approx(
        [0, 0.4, 0.6, 1], abs=0.01
    )
    before = copy.deepcopy(method.network.state_dict())
    images.rng = Rng(list(range(6)))
    maps = method.maps(images).map
    assert all(torch.equal(a, before[n]) for n, a in method.network.state_dict().items())
    points = method.trajectory(images.image[:1], method.references[:3], Rng(0))
    assert [set(p) for p in points] == [{"a"}] * 3
    assert points[0]["a"] != points[1]["a"] != points[2]["a"]
    assert (maps - method.network(images.image).sigmoid()).abs().max() > 1e-4


def test_without_references_it_is_what_it_learnt():
    method = adapting().eval()
    images = doubled(2)
    torch.testing.assert_close(
        method.maps(images).map, method.network(images.image).sigmoid().detach()
    )


# ------------------------------------------------------------------------- three planes


def test_a_volume_is_judged_slice_by_slice_along_three_axes():
    class Below(nn.Module):
        """Says of a slice what its neighbour before it shows."""

        def forward(self, x):
            return x[:, :1]

    method = made("autoseg", dims=3).eval()
    method.segmenter.network = Below()
    volume = batch(2, 6, 6, 6)
    want = torch.zeros_like(volume.image)
    for axis in range(3):
        before = volume.image.roll(1, 2 + axis)
        before.select(2 + axis, 0).zero_()
        want += before.sigmoid() / 3
    maps = method.maps(volume)
    torch.testing.assert_close(maps.map, want)
    means = want[:, 0].mean((1, 2))
    torch.testing.assert_close(maps.score, means.amax(1))


def test_slices_of_a_batch_come_from_one_place():
    method = made("autoseg", dims=3, size=12).train()
    seen = []

    def loss(slices, phase, player):
        seen.append((slices.image, slices.context, float(slices.position[0])))
        return {}

    method.segmenter.loss = loss
    volumes = batch(3, 12, 12, 12)
    volumes.foreground[:] = False
    volumes.foreground[:, :, 4:8, 4:8, 4:8] = True
    for seed in range(6):
        volumes.rng = Rng(seed)
        method.loss(volumes, "segment", "network")
    for image, context, position in seen:
        at = round(12 * position)
        assert 4 <= at < 8 and torch.equal(context[:, :, 1], image)
        assert any(
            torch.equal(volumes.image.movedim(2 + axis, 2)[:, :, at], image) for axis in range(3)
        )
    assert len({tuple(image.flatten()[:3].tolist()) for image, _, _ in seen}) > 2
    assert card("autoseg").create(dims=3).phases()[0].epochs == 2 * 3 * 256
