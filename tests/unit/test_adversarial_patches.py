import pytest
import torch
from skimage.metrics import structural_similarity
from tests.support.batches import batch

from normscan.methods.adversarial.one_class import cxr_gan_occ, dissimilarity
from normscan.methods.adversarial.patched import brain_lesion_gan, chronic_infarct
from normscan.networks.dcgan import Judge, Maker
from normscan.networks.patch import drawn_patches, patches_at, told_around
from normscan.networks.unpadded import CodeDecoder, UnpaddedEncoder
from normscan.rng import Rng

pytestmark = pytest.mark.usefixtures("seed")


def test_networks_with_a_kernel_of_three_take_odd_patches():
    made = Maker(2, 2, 15, 10, 4, 3)(torch.randn(3, 10))
    assert made.shape == (3, 2, 15, 15)
    judge = Judge(2, 2, 15, 7, 4, 3)
    assert judge.features(made).shape[2:] == (4, 4) and judge(made).shape == (3, 7)


@pytest.mark.parametrize("size", [16, 32, 128])
def test_unpadded_networks_end_where_they_should(size):
    code = UnpaddedEncoder(1, size, 6, 2)(torch.rand(2, 1, size, size))
    assert code.shape == (2, 6, 1, 1)
    assert CodeDecoder(1, size, 6, 2)(code).shape == (2, 1, size, size)


@pytest.mark.parametrize("length", [5, 6])
def test_a_patch_lies_around_its_pixel(length):
    x = torch.arange(99.0).reshape(1, 1, 9, 11)
    places = torch.tensor([[4 * 11 + 5, 0]])
    inner, corner = patches_at(x, places, length)[0, :, 0]
    before = length // 2
    after = length - before
    torch.testing.assert_close(inner, x[0, 0, 4 - before : 4 + after, 5 - before : 5 + after])
    assert (corner[:before, :before] == 0).all()  # the border's pixel goes on beyond it


def test_what_is_told_of_patches_lies_where_they_are():
    x = torch.rand(2, 1, 9, 8)
    mean = lambda patches: patches.flatten(1).mean(1)  # noqa: E731
    found = told_around(x, 3, 1, mean, most=7)
    around = torch.nn.functional.pad(x, [1] * 4, mode="replicate")
    torch.testing.assert_close(found, torch.nn.functional.avg_pool2d(around, 3, 1))
    coarse = told_around(x, 3, 3, mean)
    assert coarse.shape == x.shape
    # The middle of a stride is the middle of its patch.
    torch.testing.assert_close(coarse[..., 1::3, 1], found[..., 1::3, 1])


def test_drawn_patches_are_tissue_where_there_is_enough():
    x = torch.zeros(2, 1, 20, 20)
    x[..., 8:, :] = 1
    patches = drawn_patches(x, x > 0, Rng(0), 30, 5)
    assert patches.shape == (60, 1, 5, 5) and patches.flatten(1).mean(1).min() >= 0.5


def test_dissimilarity_is_that_of_another_library():
    x, y = torch.rand(2, 24, 24, dtype=torch.double) * 2 - 1
    _, full = structural_similarity(
        x.numpy(), y.numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=2.0, full=True,
    )  # fmt: skip
    expected = (1 - full[5:-5, 5:-5].mean()) / 2
    assert dissimilarity(x[None, None], y[None, None]).item() == pytest.approx(expected)


def test_rate_falls_to_nothing_in_the_last_passes():
    player = cxr_gan_occ(size=16, width=2, epochs=10, decayed=4).phases()[0].players[0]
    rates = [player.schedule(step, 100) for step in (0, 59, 60, 80, 99)]
    assert rates == pytest.approx([1, 1, 1, 0.5, 0.025])


@pytest.mark.parametrize("method", [brain_lesion_gan, chronic_infarct])
def test_patches_of_an_image_are_scored_one_by_one(method):
    side = 16 if method is brain_lesion_gan else 15
    made = method(size=32, side=side, width=4, latent=6, stride=1).eval()
    some = batch(2)
    found = made.maps(some).map
    patch = (2 * some.image - 1)[1:, :, 20 - side // 2 :, 9 - side // 2 :][..., :side, :side]
    if method is brain_lesion_gan:
        expected = 1 - torch.sigmoid(made.discriminator(patch))[0, 0]
    else:
        code = made.encoder(patch)
        expected = (made.second(made.decoder(code)) - code).square().sum()
    torch.testing.assert_close(found[1, 0, 20, 9], expected, rtol=1e-4, atol=1e-7)
