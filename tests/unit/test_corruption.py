"""Artificial anomalies: the contract, its parts beside formulas, and every task in 2D and 3D."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from skimage.draw import polygon2mask

from normscan.errors import ArgumentError
from normscan.rng import Rng
from normscan.synthesis import blends, donors, labels, placement, shapes, tasks
from normscan.synthesis.corruption import records
from normscan.synthesis.draws import erlang, grid, on_edge, read_at, rotations
from normscan.synthesis.tasks import TASKS


def heads(n: int, spatial: tuple[int, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy balls in balls, (n, 1, *spatial) from 0 to 1, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(spatial).float().reshape(-1, *[1] * len(spatial))
    r = ((grid(spatial) - (sizes - 1) / 2) / (0.42 * sizes)).square().sum(0).sqrt()
    image = 0.35 * (r < 1) + 0.4 * (r < 0.6) + 0.02 * torch.randn(n, *spatial, generator=generator)
    return (image * (r < 1)).clamp(0, 1)[:, None], (r < 1).expand(n, 1, *spatial)


@pytest.mark.parametrize("spatial", [(40, 33), (18, 16, 20)])
@pytest.mark.parametrize("name", TASKS)
def test_a_task_changes_and_labels_only_its_region(name, spatial):
    x, inside = heads(3, spatial, 0)
    donor, _ = heads(3, spatial, 1)
    before = x.clone()
    made, rows = TASKS[name].plant(x, 5, inside, donor)
    assert torch.equal(x, before), "the host was changed"
    assert made.image.shape == x.shape and made.label.shape == made.region.shape == inside.shape
    assert torch.isfinite(made.image).all() and torch.isfinite(made.label).all()
    assert (made.image - x).abs()[~made.region].max() <= 1e-3
    assert made.region.any(), "nothing was planted into any of three images"
    assert made.label.min() >= 0 and made.label.max() <= 1
    if name != "draem":  # whose label is the whole mask
        assert not made.label[(made.image == x).all(1, keepdim=True)].any() or name in (
            "nsa", "many_tasks",
        )  # fmt: skip
    assert [r["kind"] for r in rows] == [name] * 3
    again, _ = TASKS[name].plant(x[1:2], 5, inside[1:2], donor[1:2])
    assert again.image.shape == x[1:2].shape


def test_the_seed_alone_decides_and_batch_mates_do_not_matter():
    x, inside = heads(3, (40, 33), 0)
    donor, _ = heads(3, (40, 33), 1)
    for name in ("bright", "nsa", "push", "many_tasks", "scar"):
        task = TASKS[name].corrupt
        whole = task(x, donor, Rng([1, 2, 3]), inside)
        alone = task(x[1:2], donor[1:2], Rng([2]), inside[1:2])
        torch.testing.assert_close(whole.image[1:2], alone.image, rtol=0, atol=1e-5)
        other = task(x, donor, Rng([4, 5, 6]), inside)
        assert not torch.equal(whole.image, other.image)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ArgumentError, match="'nsa'"):
        tasks.task("nsaa")


# ------------------------------------------------------------------------ parts


def test_fpi_is_its_formula():
    x, inside = heads(20, (60, 60), 0)
    donor = torch.rand(x.shape, generator=torch.Generator().manual_seed(1))
    made = tasks.fpi(core=0.5)(x, donor, Rng(3), inside)
    for host, other, image, label in zip(x, donor, made.image, made.label, strict=True):
        a = label.max()
        assert 0.05 <= a <= 0.95
        where = label > 0
        rows, columns = (np.flatnonzero(where[0].any(1 - axis)) for axis in (0, 1))
        # A square of an even side from 2 * 3 to 2 * 11 pixels, its centre in the central half.
        assert np.ptp(rows) == np.ptp(columns) and (np.ptp(rows) + 1) % 2 == 0
        assert 6 <= np.ptp(rows) + 1 <= 22 and 15 <= (rows[0] + rows[-1] + 1) / 2 < 45
        torch.testing.assert_close(image, torch.where(where, (1 - a) * host + a * other, host))


def test_fpi_classes():
    x, inside = heads(64, (40, 40), 0)
    made = tasks.fpi(0.8, 5)(x, torch.ones_like(x), Rng(0), inside)
    assert set(made.label.unique().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}
    change = (made.image - x)[made.label == 2] / (1 - x)[made.label == 2]
    torch.testing.assert_close(change, torch.full_like(change, 0.5))


def test_sizes_follow_their_distributions():
    n, size = 4000, (1000, 1000)
    drawn = erlang(Rng(0), (n,), 2, 0.03)
    assert scipy.stats.kstest(drawn.numpy(), scipy.stats.gamma(2, scale=0.03).cdf).pvalue > 0.01
    boxes = shapes.area_boxes()(n, size, Rng(1))
    area = (2 * boxes.half).prod(1) / 1e6
    assert scipy.stats.kstest(area.numpy(), scipy.stats.uniform(0.02, 0.13).cdf).pvalue > 0.01
    ratio = (boxes.half[:, 0] / boxes.half[:, 1]).log()
    reach = math.log(1 / 0.3)
    assert scipy.stats.kstest(
        ratio.numpy(), scipy.stats.uniform(-reach, 2 * reach).cdf
    ).pvalue > 0.01  # fmt: skip


def test_outlines_have_the_area_that_they_should():
    offsets = grid((200, 200))[None] - 100
    matrix = rotations(Rng(0), 1, 2, math.pi)
    half = torch.tensor([[40.0, 20.0]])
    ball, box = (shapes.Affine(half, matrix, torch.tensor([r])) for r in (True, False))
    assert ball.inside(offsets).sum() == pytest.approx(math.pi * 40 * 20, rel=0.01)
    assert box.inside(offsets).sum() == pytest.approx(80 * 40, rel=0.03)
    for outline in (ball, box):
        places = outline.inside(offsets)[0].nonzero() - 100
        assert places.abs().amax(0).tolist() == pytest.approx(outline.extent[0].tolist(), abs=1.5)
    line = shapes.splines((0.8, 0.9))(1, (200, 200), Rng(2))
    wanted = polygon2mask((200, 200), (line.points[0] + 100).numpy())
    assert (line.inside(offsets)[0].numpy() != wanted).mean() < 0.005


@pytest.mark.parametrize("round", [True, False])
def test_the_way_out_ends_on_the_edge(round):
    matrix = rotations(Rng(1), 1, 3, math.pi)
    outline = shapes.Affine(torch.tensor([[9.0, 5.0, 7.0]]), matrix, torch.tensor([round]))
    start = torch.tensor([[1.0, -1.5, 0.5]])
    unit = torch.nn.functional.normalize(torch.randn(1, 3, 5, 5, 5), dim=1)
    far = outline.way_out(start, unit)
    for factor, inside in ((0.99, True), (1.01, False)):
        points = start[..., None, None, None] + factor * far[:, None] * unit
        assert (outline.inside(points) == inside).all()


def test_deformation_moves_tissue_as_far_as_asked():
    """Along a ray push and pull leave both ends in place and move what is between them."""
    x = grid((61, 61))[:1][None] / 60
    scene = placement.Scene(
        x, x, x > -1, x > -1, Rng(0), shapes.ellipses((0.6, 0.6), 0)(1, (61, 61), Rng(0))
    )
    scene.put(torch.tensor([[30.0, 30.0]]))
    start = torch.tensor([[30.0, 30.0]])
    for way, sign in (("push", -1), ("pull", 1)):
        k = blends._exponent(scene, start, (3.0, 3.0), way)
        t = torch.linspace(0, 1, 1001)
        moved = t**k if way == "push" else 1 - (1 - t) ** k
        assert (sign * (moved - t) >= -1e-6).all() and moved[0] == 0 and moved[-1] == 1
        # Perpendicular to the diagonal it is off by 3 pixels where r + r' is the radius.
        radius = float((on_edge(scene.mask)[0, 0].nonzero() - 30).float().norm(dim=1).mean())
        at = (moved + t - 1).abs().argmin()
        assert abs(float(moved[at] - t[at])) * radius / 2**0.5 == pytest.approx(3, abs=0.1)


def test_reading_between_pixels_is_linear():
    image = torch.rand(1, 1, 6, 7, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([2.25, 3.5]).reshape(1, 2, 1, 1)
    a = image[0, 0, 2:4, 3:5]
    wanted = 0.75 * a[0].mean() + 0.25 * a[1].mean()
    assert read_at(image, points).item() == pytest.approx(wanted.item(), abs=1e-5)


def test_logistic_labels_are_the_releases_formula():
    x = torch.zeros(1, 1, 40, 40)
    y = x.clone()
    y[..., 8:32, 8:32] = 10 / 255
    mask = torch.ones_like(x, dtype=torch.bool)
    label = labels.difference(logistic=(0.5, 4))(x, y, mask, torch.ones(1, 1, 1, 1))
    assert label[0, 0, 20, 20].item() == pytest.approx(1 / (1 + math.exp(-0.5 * 6)), abs=1e-5)
    assert label[0, 0, 2, 2] == 0
    faint = labels.difference(logistic=(0.5, 4))(x, y / 20, mask, torch.ones(1, 1, 1, 1))
    assert not faint.any(), "changes of less than one grey value are no anomaly"


def test_flipped_gaussian_fills_holes():
    x = torch.zeros(1, 1, 30, 30)
    y = x.clone()
    y[..., 5:25, 5:25] = 0.3
    y[..., 12:16, 12:16] = 0  # changes pass through zero where intensities meet
    mask = y > 0
    mask[..., 12:16, 12:16] = True
    label = labels.flipped_gaussian(0.2)(x, y, mask, torch.ones(1, 1, 1, 1))
    wanted = 1 - math.exp(-(0.3**2) / (2 * 0.2**2))
    assert label[0, 0, 13, 13].item() == pytest.approx(wanted, abs=1e-6)
    assert label[0, 0, 2, 2] == 0


def test_transplants_lie_on_anatomy_or_nowhere():
    x, inside = heads(12, (64, 64), 0)
    donor, _ = heads(12, (64, 64), 1)
    made = tasks.nsa("binary")(x, donor, Rng(1), inside)
    outside = (made.region & ~inside).flatten(1).sum(1) / made.region.flatten(1).sum(1).clamp_min(1)
    assert made.region.flatten(1).any(1).sum() >= 10 and (outside < 0.35).all()
    nothing = tasks.nsa("binary")(x, donor, Rng(1), torch.zeros_like(inside))
    assert torch.equal(nothing.image, x) and not nothing.label.any()


def test_a_box_is_solved_round_the_mask():
    """Beside a dense solve of the same equations, of forward differences as the release takes them."""
    generator = torch.Generator().manual_seed(0)
    x, s = torch.rand(2, 1, 1, 12, 11, generator=generator)
    outline = shapes.ellipses((0.5, 0.5), 0)(1, (12, 11), Rng(0))
    scene = placement.Scene(x, x, x > -1, x > -1, Rng(0), outline)
    scene.put(torch.tensor([[5.0, 5.0]]))
    mask, host, donor = scene.mask[0, 0].numpy(), x[0, 0].double().numpy(), s[0, 0].double().numpy()
    new, _ = blends.boxed_poisson(scene, s)
    rows, columns = (np.flatnonzero(mask.any(1 - axis)) for axis in (0, 1))
    inside = [
        (r, c) for r in range(rows[0], rows[-1] + 1) for c in range(columns[0], columns[-1] + 1)
    ]
    number = {p: i for i, p in enumerate(inside)}
    matrix, right = np.zeros((len(inside),) * 2), np.zeros(len(inside))
    for (r, c), i in number.items():
        for first, second in (
            ((r - 1, c), (r, c)),
            ((r, c), (r + 1, c)),
            ((r, c - 1), (r, c)),
            ((r, c), (r, c + 1)),
        ):
            own, other = host[second] - host[first], donor[second] - donor[first]
            wanted = other if mask[first] and abs(other) > abs(own) else own
            sign, q = (1, first) if second == (r, c) else (-1, second)
            matrix[i, i] += 1
            right[i] += sign * wanted
            if q in number:
                matrix[i, number[q]] -= 1
            else:
                right[i] += host[q]
    solved = np.linalg.solve(matrix, right).clip(host.min(), host.max())
    found = [new[0, 0, r, c].item() for r, c in inside]
    np.testing.assert_allclose(found, solved, atol=1e-5)
    assert (scene.mask[0, 0].numpy() & ~mask).any(), "corners of the box change as well"


def test_partners_are_others_of_the_same_height():
    image = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 4, 4)
    position = torch.tensor([0.1, 0.5, 0.9, 0.11, 0.52, 0.88])
    found, _ = donors.partners(image, image > -1, position, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found[:, 0, 0, 0].tolist() == [3, 4, 5, 0, 1, 2]


def test_records_say_what_is_there():
    x, inside = heads(1, (40, 40), 0)
    made = TASKS["bright"].corrupt(x, x, Rng(0), inside)
    (row,) = records("bright", x, made, inside, (2.0, 3.0))
    where = made.region[0, 0]
    assert row["size"] == pytest.approx(6 * int(where.sum()))
    values = x[0, 0][inside[0, 0]]
    change = (made.image - x)[0, 0][where].mean() / values.std(correction=0)
    assert row["contrast"] == pytest.approx(float(change), abs=1e-3) and row["contrast"] > 0
    np.testing.assert_allclose(row["place"], np.argwhere(where.numpy()).mean(0), atol=0.06)
