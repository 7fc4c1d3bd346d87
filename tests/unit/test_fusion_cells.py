"""Cells that fuse two modalities, given or searched."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.multimodal.searched import Branch
from normscan.networks.discriminative import RestoringNetwork
from normscan.networks.fusion import OPERATIONS, FusionCell, operation
from normscan.registry import card
from normscan.rng import Rng


def maps(n: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 5, 6, generator=generator) for _ in range(n)]


def test_operations_by_their_formulas():
    x, y = maps(2)
    assert torch.equal(operation("sum", 4)(x, y), x + y)
    assert not operation("zero", 4)(x, y).any()
    found = operation("attention", 4)(x, y)
    q, k = x.flatten(2).mT, y.flatten(2).mT
    wanted = ((q @ k.mT / 4**0.5).softmax(2) @ k).mT.reshape(x.shape)
    torch.testing.assert_close(found, F.group_norm(wanted, 1), rtol=1e-4, atol=1e-5)
    for name, act in (("relu", F.relu), ("mish", lambda z: z * F.softplus(z).tanh())):
        joined = operation(name, 4).eval()
        torch.testing.assert_close(joined(x, y), act(joined.layers(torch.cat([x, y], 1))))
    gated = operation("glu", 4).eval()
    a, b = gated.layers(torch.cat([x, y], 1)).chunk(2, 1)
    torch.testing.assert_close(gated(x, y), a * b.sigmoid())
    with pytest.raises(ArgumentError, match="sum"):
        operation("sums", 4)


def test_a_search_is_a_mixture_and_ends_in_its_best():
    torch.manual_seed(0)
    cell, inputs = FusionCell(4, 2, None).eval(), maps(2)
    with torch.no_grad():
        cell.scores.inputs[0].copy_(torch.tensor([[0.0, 40.0], [40.0, 0.0]]))
        cell.scores.inputs[1].copy_(torch.tensor([[0.0, 0.0, 40.0], [0.0, 40.0, 0.0]]))
        cell.scores.operations.copy_(40 * F.one_hot(torch.tensor([1, 3]), len(OPERATIONS)))
    assert cell.scores.chosen() == ((1, 0, "sum"), (2, 1, "glu"))
    torch.testing.assert_close(cell(inputs, searching=True), cell(inputs), rtol=1e-4, atol=1e-5)
    given = FusionCell(4, 2, ((1, 0, "sum"), (2, 1, "glu"))).eval()
    given.nodes[1]["glu"].load_state_dict(cell.nodes[1]["glu"].state_dict())
    given.out.load_state_dict(cell.out.state_dict())
    torch.testing.assert_close(given(inputs), cell(inputs))
    with pytest.raises(ArgumentError, match="there are 2"):
        FusionCell(4, 2, ((0, 2, "sum"),))


def test_two_inputs_differ_and_nothing_is_no_choice():
    cell = FusionCell(4, 3, None)
    for row in cell.scores.inputs:
        row.data.fill_(0.0)
        row.data[:, 1] = 1.0
    cell.scores.operations.data[:, 0] = 9.0
    for first, second, name in cell.scores.chosen():
        assert first == 1 and second != 1 and name != "zero"


def test_a_branch_is_the_restoring_network():
    torch.manual_seed(0)
    branch, x = Branch(2, 4).eval(), torch.rand(1, 2, 32, 32)
    restored, (early, middle, late) = branch.features(x)
    torch.testing.assert_close(restored, RestoringNetwork.forward(branch, x))
    assert early.shape == (1, 4, 32, 32) and late.shape == (1, 4, 32, 32)
    assert middle.shape == (1, 32, 2, 2)


def test_a_searched_detector_learns_choices_and_weights_in_turns():
    arguments = {**card("adnas_3d").arguments("tiny"), "channels": 1, "search": 2, "width": 4}
    torch.manual_seed(0)
    method = card("adnas_3d").create(**arguments)
    search, train = method.phases()
    weights, scores = search.players
    own = {id(p) for p in scores.parameters()}
    assert own and not own & {id(p) for p in weights.parameters()}
    assert own.isdisjoint(id(p) for player in train.players for p in player.parameters())
    batch = Batch(
        torch.rand(4, 1, 32, 32), torch.ones(4, 1, 32, 32).bool(), Rng(0), torch.zeros(4),
        target=torch.rand(4, 1, 32, 32),
    )  # fmt: skip
    sum(method.loss(batch, "search", "scores").values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scores.parameters())
    with pytest.raises(ArgumentError, match="multiple of 16"):
        card("adnas_3d").create(**{**arguments, "size": 40})
