"""Losses and blocks of the open-set systems, beside other computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from normscan.methods.supervised.deviation import clipped_to_1
from normscan.methods.supervised.one_class import semi_supervised
from normscan.objectives.deviation import deviation_loss, highest_mean
from normscan.objectives.optimizers import stairs
from normscan.rng import Rng
from normscan.synthesis.augment import turned
from normscan.synthesis.draws import rotations


def test_deviation_is_a_z_score():
    draws = torch.from_numpy(stats.norm.rvs(2.0, 3.0, 5000, random_state=0))
    score = torch.tensor([2.0, 8.0, -4.0, 30.0], dtype=torch.float64)
    z = (score.numpy() - draws.numpy().mean()) / draws.numpy().std(ddof=1)
    healthy = deviation_loss(score, torch.zeros(4, dtype=torch.bool), draws)
    ill = deviation_loss(score, torch.ones(4, dtype=torch.bool), draws)
    np.testing.assert_allclose(healthy, np.abs(z))
    np.testing.assert_allclose(ill, np.maximum(0, 5 - z))


def test_highest_mean_is_a_mean_of_sorted_values():
    values = torch.randn(3, 25, generator=torch.Generator().manual_seed(0))
    mean, which = highest_mean(values, 0.1)
    np.testing.assert_allclose(mean, np.sort(values.numpy())[:, -2:].mean(1), rtol=1e-6)
    assert which.shape == (3, 2)
    assert highest_mean(values, 0.001)[1].shape == (3, 1)


def test_anomalies_are_driven_off_the_centre():
    code = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    code.requires_grad_()
    centre = torch.zeros(8, dtype=torch.float64)
    away = (code - centre).square().sum(1)
    semi_supervised(away, torch.tensor([False, True]), 1.0).sum().backward()
    assert code.grad is not None
    # A step against the gradient brings the healthy one nearer and the anomalous one away.
    along = (code.grad * (code - centre)).sum(1)
    assert along[0] > 0 > along[1]

    def loss(x: torch.Tensor) -> torch.Tensor:
        return semi_supervised(x.square().sum(1), torch.tensor([False, True]), 2.5)

    assert torch.autograd.gradcheck(loss, code.detach().requires_grad_())


def test_percentile_is_that_of_numpy():
    x = torch.randn(2, 1, 20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for ours, theirs in zip(clipped_to_1(x).numpy(), x.numpy(), strict=True):
        low, high = theirs.min(), np.percentile(theirs, 99)
        np.testing.assert_allclose(ours, np.clip((theirs - low) / (high - low), 0, 1))
    assert not clipped_to_1(torch.zeros(1, 1, 4, 4)).any()


def test_rate_falls_as_the_scheduler_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    rhythm, ahead = stairs(5), stairs(3, ahead=1 / 30)
    for epoch in range(50):
        assert rhythm(20 * epoch, 1000) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
        if epoch < 30:  # stepped before the epoch
            assert ahead(20 * epoch, 600) == pytest.approx(scheduler.get_last_lr()[0])


def test_a_turned_image_lies_on_black():
    image = torch.rand(1, 1, 21, 17, generator=torch.Generator().manual_seed(3))
    found = turned(image, Rng([5]), torch.pi, beyond="zeros")[0, 0].numpy()
    turn = rotations(Rng([5]), 1, 2, torch.pi)[0].numpy()
    middle = np.array([10, 8])
    theirs = ndimage.affine_transform(
        image[0, 0].numpy(), turn, middle - turn @ middle, order=1, mode="grid-constant"
    )
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    assert found[0, 0] == 0
