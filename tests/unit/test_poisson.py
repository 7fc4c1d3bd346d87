"""The Poisson solver beside scipy's sparse direct solve of the same equations."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import scipy.sparse
import torch
from scipy.sparse.linalg import spsolve

from normscan.synthesis.poisson import guidance, inner, sine_transform, solve_poisson


def direct(image: np.ndarray, guide: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One image (*spatial), an equation a pixel, as an article would write it down."""
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    matrix = scipy.sparse.lil_matrix((mask.sum(), mask.sum()))
    b = guide[mask].astype(float)
    for row, place in enumerate(np.argwhere(mask)):
        matrix[row, row] = 2 * mask.ndim
        for axis in range(mask.ndim):
            for step in (-1, 1):
                other = place.copy()
                other[axis] += step
                if mask[tuple(other)]:
                    matrix[row, number[tuple(other)]] = -1
                else:
                    b[row] += image[tuple(other)]
    result = image.astype(float)
    result[mask] = spsolve(matrix.tocsc(), b)
    return result


def masks(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A box, specks, a ball, everything and nothing, (5, 1, *shape)."""
    result = torch.zeros(5, 1, *shape, dtype=torch.bool)
    result[0, 0][(slice(3, 11),) * len(shape)] = True
    result[1] = torch.rand(1, *shape, generator=generator) > 0.3
    axes = torch.meshgrid(*[torch.arange(n) - n / 2 for n in shape], indexing="ij")
    result[2, 0] = sum(a.square() for a in axes) < 30
    result[3] = True
    return inner(result)


@pytest.mark.parametrize("shape", [(29, 22), (13, 12, 14)])
def test_every_mask_is_solved_as_a_direct_solver_does(shape):
    generator = torch.Generator().manual_seed(0)
    image, donor = (torch.rand(5, 1, *shape, generator=generator) for _ in range(2))
    mask = masks(shape, generator)
    guide = guidance(image, donor, lambda x, s: torch.where(x.abs() > s.abs(), x, s))
    solved = solve_poisson(image, guide, mask)
    for i in range(5):
        wanted = direct(*(t[i, 0].numpy() for t in (image, guide, mask)))
        np.testing.assert_allclose(solved[i, 0].numpy(), wanted, atol=1e-4)
    assert torch.equal(solved[4], image[4])


def test_channels_are_systems_of_their_own_and_batch_mates_do_not_matter():
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, 2, 20, 24, generator=generator)
    mask = masks((20, 24), generator)[:3]
    together = solve_poisson(image, torch.zeros_like(image), mask)
    for i in range(3):
        for c in range(2):
            alone = image[i : i + 1, c : c + 1]
            one = solve_poisson(alone, torch.zeros_like(alone), mask[i : i + 1])
            torch.testing.assert_close(together[i : i + 1, c : c + 1], one, rtol=0, atol=1e-4)


def test_gradients_of_the_image_itself_give_the_image():
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(2, 1, 21, 17, generator=generator)
    guide = guidance(image, image, lambda x, s: s)
    solved = solve_poisson(image, guide, torch.ones_like(image, dtype=torch.bool))
    torch.testing.assert_close(solved, image, rtol=0, atol=1e-5)


def test_sine_transform_is_scipys():
    x = torch.rand(2, 3, 7, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for axis in (2, 3):
        wanted = scipy.fft.dst(x.numpy(), type=1, axis=axis) / 2
        np.testing.assert_allclose(sine_transform(x, axis).numpy(), wanted, atol=1e-12)
