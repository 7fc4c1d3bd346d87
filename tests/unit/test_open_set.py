"""Losses and blocks of the open-set systems, beside other computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from scipy.signal import windows

from normscan.methods.supervised.description import by_image, by_pixel, pseudo_huber
from normscan.methods.supervised.deviation import clipped_to_1
from normscan.methods.supervised.one_class import semi_supervised
from normscan.networks.receptive import Field, enlarged, field_of
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


def test_a_receptive_field_is_where_gradients_come_from():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(2, 2, 3, padding=1), torch.nn.MaxPool2d(3, 2, 1), torch.nn.Conv2d(2, 1, 3),
    )  # fmt: skip
    field = field_of(network)
    # Sums in place of maxima, so that every pixel that could count does.
    for k in (2, 4):
        pool = network[k]
        network[k] = torch.nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)
    for layer in network:
        for parameter in layer.parameters():
            torch.nn.init.constant_(parameter, 1.0)
    for cell in (3, 5):
        image = torch.ones(1, 1, 64, 64, requires_grad=True)
        network(image)[0, 0, cell, cell].backward()
        seen = image.grad[0, 0].sum(0).nonzero()[:, 0]
        assert len(seen) == field.extent
        middle = field.start + cell * field.jump
        assert float(seen.float().mean()) == pytest.approx(middle)


@pytest.mark.parametrize("extent", [5, 6])
def test_enlarging_is_a_sum_of_gaussians(extent):
    cells = torch.rand(2, 1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    found = enlarged(cells, Field(extent, 4, 1.5), (16, 12), 2.0).numpy()
    odd = extent - 1 + extent % 2
    line = windows.gaussian(odd, 2.0)
    if extent % 2 == 0:
        line = np.insert(line, odd // 2, line[odd // 2]) / 2
    theirs = np.zeros((2, 16 + 2 * extent, 12 + 2 * extent))
    first = extent - ((extent - 1) // 2 - 1)
    for i in range(4):
        for j in range(3):
            where = np.s_[
                :, first + 4 * i : first + 4 * i + extent, first + 4 * j : first + 4 * j + extent
            ]
            theirs[where] += cells[:, 0, i, j].numpy()[:, None, None] * np.outer(line, line)
    np.testing.assert_allclose(found[:, 0], theirs[:, extent:-extent, extent:-extent])


def test_description_is_small_for_healthy_and_large_for_anomalous_means():
    cells = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    mean = cells.numpy().mean((1, 2, 3))
    found = by_image(cells, torch.tensor([False, True, False]))
    np.testing.assert_allclose(found, [mean[0], -np.log1p(-np.exp(-mean[1])), mean[2]])
    lesion = torch.zeros(3, 1, 4, 4, dtype=torch.bool)
    lesion[1, 0, :2] = True
    inside = (cells * lesion).numpy().mean((1, 2, 3))
    theirs = mean - inside + np.where([0, 1, 0], -np.log1p(-np.exp(-inside.clip(1e-9))), 0)
    np.testing.assert_allclose(by_pixel(cells, lesion), theirs)
    far = pseudo_huber(torch.tensor([0.0, 3.0], dtype=torch.float64))
    np.testing.assert_allclose(far, [0, np.sqrt(10) - 1])
