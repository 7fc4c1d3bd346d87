"""Whole volumes: erased boxes, and the age as a second task, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis.rectangles import erased


def volumes(n=4, shape=(12, 10, 8)):
    foreground = torch.zeros(n, 1, *shape, dtype=torch.bool)
    foreground[:, :, 2:10, 1:9, 2:7] = True
    return torch.ones(n, 2, *shape), foreground


def spans(gone):
    """The extents of what is erased in one volume."""
    return [np.ptp(v) + 1 for v in np.nonzero(gone)]


@pytest.mark.parametrize("kind", ["squares", "cuboids", "slabs"])
def test_boxes_are_boxes_inside_the_brain(kind):
    image, foreground = volumes()
    sizes = []
    for seed in range(20):
        gone = (erased(image, foreground, Rng(seed), kind, 1) == 0).numpy()
        assert (gone[:, 0] == gone[:, 1]).all()
        for volume in gone[:, 0]:
            assert not (volume & ~foreground[0, 0].numpy()).any()
            slices = volume[..., 2:7]
            if kind == "squares":
                assert slices.any((0, 1)).all()
                for plane in np.moveaxis(slices, -1, 0):
                    assert plane.sum() == np.prod(spans(plane))
                sizes.append([*spans(slices[..., 0])])
            else:
                assert volume.sum() == np.prod(spans(volume))
                sizes.append(spans(volume))
    limits = {"squares": [4, 4], "cuboids": [4, 4, 2], "slabs": [8, 8, 2]}[kind]
    assert np.max(sizes, 0).tolist() == limits
    assert len(np.unique(sizes, axis=0)) > 1


def test_nothing_is_erased_without_boxes_or_brain():
    image, foreground = volumes()
    assert erased(image, foreground, Rng(0), count=0).all()
    assert erased(image, foreground & False, Rng(0)).all()


def test_the_network_sees_erased_volumes_and_restores_whole_ones():
    method = card("spatial_erasing_3d").create(
        **card("spatial_erasing_3d").arguments("tiny", dims=3, size=16, width=4, kl_weight=0.0)
    )
    image, foreground = torch.rand(2, 1, 16, 16, 16) + 0.1, torch.ones(2, 1, 16, 16, 16) > 0
    seen = []
    encode = method.network.encode
    method.network.encode = lambda x: (seen.append(x), encode(x))[1]
    batch = Batch(image, foreground, Rng(3), torch.zeros(2))
    error = method.eval().loss(batch, "", "")["l1"]
    assert (seen[0] == 0).any() and (seen[0][seen[0] != 0] == image[seen[0] != 0]).all()
    mean, log_std = (v.detach() for v in encode(seen[0]))
    again = Rng(3)
    erased(image, foreground, again)
    code = mean + log_std.exp() * again.normal(mean.shape)
    expected = (method.network.decode(code) - image).abs().sum() / 2
    torch.testing.assert_close(error, expected)


def aged(n=6, ages=(20, 30, 45, 50, 62, 71)):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(n, 1, 16, 16, generator=generator)
    columns = [{"age": str(a)} for a in ages[:n]]
    foreground = torch.rand(n, 1, 16, 16, generator=generator) < 0.8
    return Batch(image, foreground, Rng(list(range(n))), torch.zeros(n), columns=columns)


def brain_age(**changes):
    arguments = card("brain_age_multitask").arguments("tiny", dims=2, size=16, age="age", **changes)
    torch.manual_seed(0)
    return card("brain_age_multitask").create(**arguments).eval()


def test_score_is_the_sum_of_two_deviations():
    method, batch = brain_age(), aged()
    method.fit([batch])
    ages = np.array([float(c["age"]) for c in batch.columns])
    mean, _ = method.encode(batch.image)
    predicted = (50 + 20 * method.age(mean)[:, 0]).detach().double().numpy()
    gap = predicted - ages
    left = gap - np.polyval(np.polyfit(ages, gap, 1), ages)
    residual = (batch.image - method.network.decode(mean)).abs().detach().numpy()[:, 0]
    inside = batch.foreground[:, 0].numpy()
    error = np.array([r[m].mean() for r, m in zip(residual, inside, strict=True)])
    expected = (error - error.mean()) / error.std() + np.abs(left / left.std())
    np.testing.assert_allclose(method.maps(batch).score, expected, rtol=1e-3, atol=1e-4)


def test_the_age_is_a_term_of_the_loss():
    method, batch = brain_age(age_weight=2.0), aged()
    mean, _ = method.encode(batch.image)
    ages = torch.tensor([float(c["age"]) for c in batch.columns])
    expected = 2 * (method.age(mean)[:, 0] - (ages - 50) / 20).abs().mean()
    torch.testing.assert_close(method.loss(batch, "", "")["age"], expected)


@pytest.mark.parametrize("columns", [[], [{"sex": "f"}] * 6, [{"age": ""}] * 6])
def test_a_missing_age_is_said(columns):
    batch = aged()
    batch.columns = columns
    with pytest.raises(ArgumentError, match="'age'"):
        brain_age().loss(batch, "", "")
    with pytest.raises(ArgumentError, match="'age'"):
        brain_age().maps(batch)


def test_the_order_of_batches_doesnt_matter_to_the_fit():
    whole, parts = brain_age(), brain_age()
    batch = aged()
    whole.fit([batch])
    rows = [[0, 3], [5], [1, 2, 4]]
    parts.fit(
        [
            Batch(batch.image[r], batch.foreground[r], Rng(r), torch.zeros(len(r)),
                  columns=[batch.columns[i] for i in r])
            for r in rows
        ]
    )  # fmt: skip
    torch.testing.assert_close(whole.usual, parts.usual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.line, parts.line, rtol=1e-4, atol=1e-5)
