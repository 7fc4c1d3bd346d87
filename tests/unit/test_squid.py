"""Memories and space-aware patches against loops and brute force."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.adversarial.places import squid
from normscan.methods.base import Batch
from normscan.networks.memory import MemoryQueue, StrongestMemory, strongest
from normscan.networks.norms import kept_statistics
from normscan.networks.squid import cut, joined, shortcut
from normscan.rng import Rng
from normscan.synthesis.augment import shifted

pytestmark = pytest.mark.usefixtures("seed")


def test_the_strongest_weights_against_sorting():
    logits = torch.randn(4, 9, dtype=torch.double)
    found = strongest(logits, 3)
    for row, weights in zip(logits.softmax(-1), found, strict=True):
        kept = row.argsort(descending=True)[:2]  # the third is the limit itself
        expected = torch.zeros_like(row)
        expected[kept] = row[kept] / row[kept].sum()
        torch.testing.assert_close(weights, expected)


def test_the_strongest_weights_have_the_gradient_of_the_softmax():
    logits, weights = torch.randn(2, 6, requires_grad=True), torch.randn(2, 6)
    (found,) = torch.autograd.grad((strongest(logits, 3) * weights).sum(), logits)
    (expected,) = torch.autograd.grad((logits.softmax(-1) * weights).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_a_memory_read_against_a_loop():
    memory, z = StrongestMemory(7, 3, 4), torch.randn(5, 3)
    for code, found in zip(z, memory(z), strict=True):
        alike = torch.stack([code @ slot for slot in memory.slots])
        shares = alike.softmax(0)
        best = sorted(range(7), key=lambda i: -shares[i])[:3]
        total = sum(shares[i] for i in best)
        expected = sum(shares[i] / total * memory.slots[i] for i in best)
        torch.testing.assert_close(found, expected)


def test_a_queue_is_a_ring():
    memory, last = MemoryQueue(5, 2, 3), {}
    assert not list(memory.parameters())
    number = 0
    for n in (2, 4, 1, 3):
        z = torch.randn(n, 2)
        memory.enqueue(z)
        for row in z:
            last[number % 5] = row
            number += 1
    torch.testing.assert_close(memory.slots, torch.stack([last[i] for i in range(5)]))
    assert int(memory.place) == number % 5


def test_a_queue_takes_the_last_of_more_than_it_holds():
    memory, z = MemoryQueue(3, 1, 2), torch.arange(5.0)[:, None]
    memory.enqueue(z)
    assert sorted(memory.slots.flatten().tolist()) == [2, 3, 4]


def test_what_was_read_can_still_be_differentiated_behind_the_queue_s_update():
    memory, z = MemoryQueue(4, 2, 3), torch.randn(3, 2, requires_grad=True)
    read = memory(z)
    memory.enqueue(z.detach())
    read.sum().backward()
    assert z.grad.abs().sum() > 0


def test_patches_are_those_of_unfold():
    x = torch.randn(2, 3, 4, 6)
    expected = F.unfold(x, (2, 3), stride=(2, 3)).transpose(1, 2).reshape(8, 3, 2, 3)
    torch.testing.assert_close(cut(x), expected)
    torch.testing.assert_close(joined(cut(x)), x)


def test_a_shortcut_keeps_its_share_of_places():
    x, before = torch.ones(1, 3, 200, 200), torch.zeros(1, 3, 200, 200)
    found = shortcut(x, before, 0.9)
    assert found.mean().item() == pytest.approx(0.9, abs=0.01)
    assert (found.amax(1) == found.amin(1)).all()  # whole places, all channels


def test_the_place_of_a_patch_is_its_number_in_binary():
    place = squid(size=64, width=2, first=2, slots=6).network.inpaint.place
    assert [int("".join(str(int(b)) for b in row), 2) for row in place] == [0, 1, 2, 3]


def test_neighbours_are_all_but_the_place_itself():
    """With one patch changed, attention at that place sees the same neighbours."""
    block = squid(size=64, width=2, first=2, slots=6).network.inpaint.eval()
    seen = []
    block.attention.register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    x = torch.randn(4, 32, 2, 2)
    codes = block.codes(x)
    block(x, codes)
    other = codes.clone()
    other[:, 3] = torch.randn_like(other[:, 3])
    block(x, other)
    changed = (seen[0] - seen[1]).abs().sum(-1)  # neighbours x places
    assert changed[:, 3].max() == 0 and (changed[:, :3] > 0).sum(0).tolist() == [1, 1, 1]


def test_statistics_of_a_single_image_in_evaluation():
    norm = nn.BatchNorm2d(3).eval()
    before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(1, 3, 5, 5) * 4 + 2
    with kept_statistics(norm, by="own"):
        found = norm(x)
    torch.testing.assert_close(found, F.instance_norm(x, eps=norm.eps), atol=1e-5, rtol=1e-5)
    assert not norm.training and norm.track_running_stats
    assert torch.equal(norm.running_mean, before[0]) and torch.equal(norm.running_var, before[1])


def test_the_score_is_by_mean_and_deviation_of_training_images():
    method = squid(size=64, width=2, first=2, slots=6).double().eval()
    image = torch.rand(5, 1, 64, 64).double()
    batch = Batch(image, torch.ones_like(image, dtype=torch.bool), Rng(0), torch.zeros(5))
    method.fit([batch])
    judge = method.discriminator.train()  # as the release scores, one image at a time
    with torch.no_grad():
        said = torch.cat([judge(method.network(x[None]))[:, 0] for x in image])
    judge.eval()
    z = ((said - said.mean()) / (said.std(correction=0) + 1e-8)).tolist()
    expected = [1 - 1 / (1 + math.exp(-v)) for v in z]
    assert method.maps(batch).score.tolist() == pytest.approx(expected, rel=1e-3)


def test_the_rate_falls_as_a_cosine_over_three_hundred_passes():
    player = squid(size=64, width=2, first=2, slots=6, epochs=600).phases()[0].players[1]
    rates = [player.schedule(step, 6) for step in (0, 3, 6)]
    assert rates == pytest.approx([1, 0.1, 1])  # it goes up again, as the release's does


def test_sizes_that_do_not_fit_are_refused():
    for size in (32, 80):
        with pytest.raises(ArgumentError, match=f"size={size}"):
            squid(size=size)
    with pytest.raises(ArgumentError, match="slots=4"):
        squid(slots=4)


def test_shifted_images_move_by_whole_pixels_where_numbers_say_so():
    class Told:
        def uniform(self, shape):
            # A tenth of the way from -5 % to 5 % is 4 % less: 1 pixel of 25.
            return torch.full(shape, 0.9) if shape[1] == 2 else torch.full(shape, 0.5)

    x = torch.rand(1, 1, 25, 25)
    found = shifted(x, Told())
    torch.testing.assert_close(found[..., :-1, :-1], x[..., 1:, 1:], atol=1e-4, rtol=1e-4)
