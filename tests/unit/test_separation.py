import numpy as np
import pytest
import scipy.ndimage
import torch
from skimage import measure

from normscan.methods.adversarial.separation import Candidates, t_test_loss, variance, widened


@pytest.mark.parametrize("radius", [1, 3, 7])
def test_lesions_are_widened_by_a_disc(radius):
    mask = np.zeros((32, 40), bool)
    mask[5, 6] = mask[20:23, 30] = mask[31, 0] = True
    reach = np.arange(-radius, radius + 1)
    disc = np.hypot(reach[:, None], reach) <= radius
    expected = scipy.ndimage.binary_dilation(mask, disc)
    found = widened(torch.from_numpy(mask)[None, None], radius)[0, 0].numpy()
    np.testing.assert_array_equal(found, expected)


def test_candidates_are_components_that_are_large_enough():
    residual = np.random.default_rng(0).random((40, 40)) ** 3
    finder = Candidates(0.3, 5, 8, 16)
    regions = measure.regionprops(measure.label(residual > 0.3, connectivity=2))
    expected = [r for r in regions if r.area >= 5]
    numbered, centres = finder.found(residual)
    assert len(centres) == numbered.max() == len(expected) > 1
    np.testing.assert_allclose(sorted(map(tuple, centres)), sorted(r.centroid for r in expected))
    for k, centre in enumerate(centres, 1):
        np.testing.assert_allclose(np.argwhere(numbered == k).mean(0), centre)
    none, nowhere = finder.found(np.zeros((8, 8)))
    assert none.max() == 0 and nowhere.shape == (0, 2)


def test_squares_stay_in_the_image():
    image = torch.arange(100.0).reshape(1, 10, 10)
    for centre, first in (((0, 0), 0), ((5, 5), 33), ((9, 9), 66)):
        assert Candidates(0.1, 1, 4, 4).cut(image, np.array(centre))[0, 0, 0, 0] == first
    assert Candidates(0.1, 1, 4, 8).cut(image, np.array((5, 5))).shape == (1, 1, 8, 8)


def test_the_loss_is_that_of_a_t_test_by_images_and_by_pixels():
    residual = torch.rand(4, 1, 6, 6)
    lesion = torch.zeros(4, 1, 6, 6, dtype=torch.bool)
    lesion[0, 0, :2, :3] = lesion[2, 0, 4, 4] = True
    by_image = t_test_loss(residual, lesion, "images")
    high = np.array([residual[i][lesion[i]].mean() for i in (0, 2)])
    low = np.array([residual[i].mean() for i in (1, 3)])
    found = [float(v) for v in by_image.values()]
    expected = [max(0, 0.8 - high.mean()), high.var(ddof=1), low.mean(), 0.1 * low.var(ddof=1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    by_pixel = t_test_loss(residual, lesion, "pixels")
    high, low = residual[lesion].numpy(), residual[~lesion].numpy()
    found = [float(v) for v in by_pixel.values()]
    expected = [max(0, 0.8 - high.mean()), 0.1 * high.var(ddof=1), low.mean(), low.var(ddof=1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_batch_of_one_kind_has_the_terms_of_that_kind():
    residual, none = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    assert set(t_test_loss(residual, none, "images")) == {"healthy", "spread of healthy"}
    assert variance(torch.ones(1)) == 0
