"""What the diffusion methods do beyond their records: hidden patches, masks, what stays as it was."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from scipy import ndimage
from torch import nn
from torch.distributions import Normal, kl_divergence

from normscan.errors import WeightsError
from normscan.methods.base import Batch
from normscan.methods.diffusion.cyclic import stripes
from normscan.methods.diffusion.harmonised import region
from normscan.methods.diffusion.patched import cells, frequency_part, random_rectangles
from normscan.networks.diffusion import linear_betas
from normscan.objectives.lpips import SpatialLPIPS
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis.blur import smooth


class Spy(nn.Module):
    """Says zeros, or what it is told to, and remembers what it saw."""

    def __init__(self, says=None):
        super().__init__()
        self.says, self.seen = says, []

    def forward(self, x, t, *rest):
        self.seen.append((x.clone(), t.clone()))
        return torch.zeros_like(x) if self.says is None else self.says(x, t)


def batch(n=3, size=32, channels=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    foreground = torch.zeros(n, 1, size, size, dtype=torch.bool)
    foreground[:, :, 3:-2, 4:-5] = True
    image = torch.rand(n, channels, size, size, generator=g) * foreground
    return Batch(image, foreground, Rng(list(range(n))), torch.full((n,), 0.5))


def tiny(id, **changes):
    made = card(id)
    return made.create(**{**made.arguments("tiny"), **changes}).eval()


def test_coarse_noise_stays_in_the_foreground():
    method, b = tiny("coarse_noise_ddpm"), batch()
    method.network = Spy()
    method.loss(b, "diffuse", "network")
    x, t = method.network.seen[0]
    clean = method.schedule.table("signal", t, x) * (2 * b.image - 1)
    outside = ~b.foreground
    torch.testing.assert_close(x[outside], clean[outside])
    assert (x - clean)[b.foreground].std() > 0.1


@pytest.mark.parametrize(("height", "width", "number"), [(32, 32, 4), (40, 33, 9), (16, 16, 1)])
def test_every_pixel_is_in_one_cell(height, width, number):
    masks = cells(torch.zeros(1, 1, height, width), 16)
    assert len(masks) == number and (masks.sum(0) == 1).all()
    assert all(int(m.sum()) <= 256 for m in masks)


def test_a_patch_sees_the_clean_rest():
    method, b = tiny("pddpm"), batch()
    method.network = Spy()
    method.maps(b)
    ((x, t),) = method.network.seen
    assert len(x) == 12 and (t == 9).all()
    clean = 2 * b.image - 1
    for k, mask in enumerate(cells(clean, 16)[:, 0]):
        row = x[3 * k : 3 * k + 3]
        assert torch.equal(row[:, :, ~mask[0]], clean[:, :, ~mask[0]])
        assert (row - clean)[:, :, mask[0]].abs().mean() > 0.1


def test_the_loss_is_blind_outside_the_patch():
    """Whatever the network says there, the loss is the same."""
    b, g = batch(), torch.Generator().manual_seed(1)
    wrong = torch.randn(3, 1, 32, 32, generator=g)
    losses = []
    for says in (lambda x, t: torch.zeros_like(x), lambda x, t: wrong):
        method = tiny("pddpm")
        method.network = Spy(says)
        losses.append(method.loss(dataclasses.replace(b, rng=Rng(4)), "", "")["patch"])
        x = method.network.seen[0][0]
    patch = x != 2 * b.image - 1
    inside = patch.flatten(1).float().mean(1)
    assert ((inside > 0.2) & (inside <= 0.25)).all()
    method.network = Spy(lambda x, t: torch.where(patch, 0.0, wrong))
    again = method.loss(dataclasses.replace(b, rng=Rng(4)), "", "")["patch"]
    torch.testing.assert_close(again, losses[0])
    assert not torch.isclose(losses[0], losses[1])


def test_frequencies_add_up():
    x, half = torch.rand(4, 2, 24, 20), torch.tensor([2, 3, 5, 10])
    low = frequency_part(x, half, torch.ones(4, dtype=torch.bool))
    high = frequency_part(x, half, torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(low + high, x, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(low.mean((2, 3)), x.mean((2, 3)))


def test_rectangles_lie_in_the_extent():
    foreground = torch.zeros(200, 1, 64, 64, dtype=torch.bool)
    foreground[:, :, 5:60, 10:50] = True
    masks = random_rectangles(foreground, Rng(0))
    assert not (masks & ~foreground).any()
    numbers = masks.flatten(1).any(1).float().mean()
    assert 0.7 < float(numbers) < 0.95  # five in six have some
    longest = int(0.18 * 55)
    assert int(masks.flatten(1).sum(1).max()) <= 5 * longest**2
    assert not random_rectangles(torch.zeros(2, 1, 8, 8, dtype=torch.bool), Rng(0)).any()


def test_mddpm_hides_in_training_alone():
    method, b = tiny("mddpm"), batch(size=64)
    clean = 2 * b.image - 1
    assert torch.equal(method.given(b), clean)
    method.network.train()
    hidden = method.given(b)
    assert not torch.equal(hidden, clean)
    assert torch.equal(hidden[~b.foreground], clean[~b.foreground])


def test_repainting_keeps_what_is_known():
    method, b = tiny("autoddpm"), batch()
    mask = torch.zeros(3, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 8:20, 8:20] = True
    with torch.no_grad():
        painted = method.repainted(b.image, b.image.flip(-1), mask, b)
    assert torch.equal(painted[~mask], b.image[~mask])
    assert (painted - b.image)[mask].abs().mean() > 0.05


def test_the_mask_is_what_exceeds_the_threshold_and_its_border():
    method = tiny("autoddpm", threshold=0.5)
    product = torch.zeros(1, 1, 9, 9)
    product[0, 0, 4, 4] = 0.6
    assert method.mask(product)[0, 0].nonzero().tolist() == [
        [y, x] for y in (3, 4, 5) for x in (3, 4, 5)
    ]


def test_filters_are_scipys():
    x = torch.rand(2, 1, 21, 30)
    for image, ours, grown in zip(x, smooth(x), region(x, 5), strict=True):
        plain = image[0].numpy()
        expected = torch.from_numpy(ndimage.gaussian_filter(plain, 2))
        torch.testing.assert_close(ours[0], expected, atol=1e-5, rtol=1e-4)
        closed = ndimage.grey_closing(plain, (5, 5), mode="nearest")
        wide = ndimage.grey_dilation(closed, (5, 5), mode="nearest")
        torch.testing.assert_close(grown[0], torch.from_numpy((wide + plain) / 2))


def test_harmonisation_returns_the_image_where_nothing_is_unlike():
    """A perfect network leaves no residual, so the image comes back and the map is zero."""
    method, b = tiny("thor"), batch()
    x = 2 * b.image - 1
    table = method.schedule.table
    method.network = Spy(
        lambda noisy, t: (noisy - table("signal", t, x) * x) / table("noise", t, x)
    )
    found = method.maps(b)
    torch.testing.assert_close(found.reconstruction, b.image, atol=1e-3, rtol=1e-3)
    assert len(method.network.seen) == 5
    steps = [int(t[0]) for _, t in method.network.seen]
    assert steps == [4, 3, 2, 1, 0]


def test_lpips_is_that_of_its_package():
    """With equal weights, on our side by their names, on theirs by the package's own code."""
    lpips = pytest.importorskip("lpips")
    import torchvision.models as models

    with pytest.MonkeyPatch.context() as patch:
        plain = models.squeezenet1_1
        patch.setattr(models, "squeezenet1_1", lambda pretrained: plain(weights=None))
        theirs = lpips.LPIPS(net="squeeze", spatial=True, verbose=False)
    ours = SpatialLPIPS("random")
    slices = {k.partition(".")[2]: v for k, v in theirs.net.state_dict().items()}
    ours.slices.load_state_dict(slices)
    for head, lin in zip(ours.heads, theirs.lins, strict=True):
        head.load_state_dict({"weight": lin.model[1].weight})
    a, b = 2 * torch.rand(2, 2, 3, 40, 48) - 1
    with torch.no_grad():
        expected = theirs(a.reshape(6, 1, 40, 48), b.reshape(6, 1, 40, 48))
        got = ours(a, b)
    torch.testing.assert_close(got, expected.reshape(2, 3, 40, 48).mean(1, True))


def test_weights_of_lpips_that_lack_say_what_to_fetch(tmp_path):
    with pytest.raises(WeightsError, match="squeezenet1_1-b8a52dc0"):
        SpatialLPIPS(str(tmp_path / "none.pth"))


@pytest.mark.parametrize("id", ["anoddpm", "coarse_noise_ddpm", "autoddpm", "thor"])
def test_few_steps_ask_the_network_less_often(id):
    method, b = tiny(id, sampler="ddim", sample_steps=2), batch()
    method.network = Spy()
    found = method.maps(b).map
    assert torch.isfinite(found).all()
    seen = len(method.network.seen)
    method = tiny(id)
    method.network = Spy()
    method.maps(b)
    assert seen < len(method.network.seen)


def test_conditioned_walks_from_noise_given_the_image():
    """Its denoiser sees noise of the last step first, and the image beside it each time."""
    method, b = tiny("img_cond_ddpm"), batch()
    method.networks = nn.ModuleList([Spy(lambda x, t: x[:, :1])])
    method.maps(b)
    seen = method.networks[0].seen
    assert [int(t[0]) for _, t in seen] == [15, 10, 5, 0]
    assert all(torch.equal(x[:, 1:], b.image) for x, _ in seen)
    assert float(seen[0][0][:, 0].std()) == pytest.approx(1, abs=0.1)


def test_weights_of_steps_and_the_constant_noise():
    method, b = tiny("img_cond_ddpm", noise_offset=3.0), batch(n=400, size=16)
    bar = torch.cumprod(1 - linear_betas(20), 0)
    ratio = bar / (1 - bar)
    expected = torch.minimum(ratio, torch.ones(())) / ratio
    torch.testing.assert_close(method.weights(torch.arange(20)), expected.float())
    noise = method.noise(b.image, b)
    assert float(noise.mean((2, 3)).std()) == pytest.approx(3, rel=0.15)
    assert float(noise.std((2, 3)).mean()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("thickness", "stride"), [(16, 2), (8, 8), (5, 3)])
def test_stripes_cover_every_pixel_in_both_directions(thickness, stride):
    masks = stripes(24, 32, thickness, stride)[:, 0, 0]
    across = -(-32 // stride)
    assert len(masks) == across + -(-24 // stride)
    assert masks[:across].any(0).all() and masks[across:].any(0).all()
    assert (masks[:across].all(1).sum(1) <= thickness).all()


def test_an_error_outside_its_stripe_does_not_count():
    """The way back returns what it was given beside the target: wrong exactly inside the stripe."""
    method, b = tiny("mmccd"), batch()
    given: list[torch.Tensor] = []

    def remember(x, t):
        given.append(x[:, 1:])
        return x[:, 1:]

    method.translate, method.back = Spy(remember), Spy(lambda x, t: given[-1])
    method.back.forward = lambda x: given[-1]
    found = method.maps(b).map
    clean = 6 * b.image - 3
    inside = (given[0] != clean).flatten(1).float().mean(1)
    assert (inside <= 0.51).all() and (found > 0).float().mean() > 0.99
    method.back.forward = lambda x: clean + 1.0
    torch.testing.assert_close(method.maps(b).map, torch.ones_like(found))


def test_new_scans_need_no_target():
    method, b = tiny("mmccd"), batch()
    assert b.target is None and torch.isfinite(method.maps(b).map).all()


def test_guidance_moves_towards_the_wanted_class():
    """A classifier that calls dark images healthy makes the restoration darker."""
    dark = nn.Module()
    dark.forward = lambda x, t: torch.stack([-x.mean((1, 2, 3)), x.mean((1, 2, 3))], 1)
    means = []
    for scale in (0.0, 200.0):
        method, b = tiny("wolleb_ddim", scale=scale), batch()
        method.network, method.classifier = (
            Spy(lambda x, t: torch.zeros_like(x).repeat(1, 2, 1, 1)),
            dark,
        )
        means.append(float(method.maps(b).reconstruction.mean()))
    assert means[1] < means[0] - 0.01


def test_fusion_leaves_the_rest_to_the_way_of_no_noise():
    method, b = tiny("dif_fuse"), batch()
    mask = torch.zeros(3, 1, 32, 32)
    mask[:, :, 4:12, 4:12] = 1
    method.network = Spy()
    method.saliency, method.mask = lambda x: x, lambda s: mask
    found = method.maps(b)
    method.mask = lambda s: torch.zeros_like(mask)
    plain = method.maps(dataclasses.replace(b, rng=Rng([9, 9, 9]))).reconstruction
    outside = mask == 0
    torch.testing.assert_close(found.reconstruction[outside], plain[outside])
    assert not torch.allclose(found.reconstruction[~outside], plain[~outside])


def test_the_mask_is_the_highest_tenth():
    method = tiny("dif_fuse")
    saliency = torch.zeros(1, 1, 40, 40)
    saliency[0, 0, :, :4] = torch.linspace(0.5, 1, 160).reshape(40, 4)
    expected = torch.zeros(1, 1, 40, 40)
    expected[..., :6] = 1  # two pixels around
    torch.testing.assert_close(method.mask(saliency), expected)


def test_the_divergence_of_steps_is_that_of_distributions():
    """KL of the two Gaussians of each step by torch.distributions, from the same noise."""
    method, z = tiny("ldm_brain", looks=(4, 9)), torch.randn(2, 4, 16, 16)
    method.network = Spy(lambda x, t: 0.3 * x)
    b = batch(n=2)
    got = method.divergence(z, b)
    s, total = method.schedule, torch.zeros_like(z)
    for (noisy, _), step in zip(method.network.seen, (4, 9), strict=True):
        t = torch.full((2,), step)
        deviation = s.posterior[step].sqrt()
        true, said = (
            Normal(s.posterior_mean(clean, noisy, t), deviation)
            for clean in (z, s.clean(noisy, t, 0.3 * noisy))
        )
        total += kl_divergence(true, said)
    torch.testing.assert_close(got, (total / 2).mean(1, keepdim=True), rtol=1e-3, atol=1e-4)


def test_codes_outside_the_mask_stay():
    method, z = tiny("ldm_brain"), torch.randn(2, 4, 16, 16)
    mask = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
    mask[:, :, 3:7, 3:7] = True
    with torch.no_grad():
        painted = method.painted(z, mask, batch(n=2))
    kept = ~mask.expand_as(z)
    assert torch.equal(painted[kept], z[kept])
    assert not torch.allclose(painted[~kept], z[~kept])


def test_the_limit_is_exceeded_by_its_share_of_healthy_codes():
    method = tiny("ldm_brain", share=0.9)
    batches = [batch(n=10, seed=i) for i in range(2)]
    with torch.no_grad():
        found = torch.cat([method.divergence(method.code(b.image), b) for b in batches])
        for b in batches:
            b.rng = Rng(list(range(10)))
        method.fit(batches)
    over = (found > method.limit).float().mean()
    assert method.limit.shape == (1, 16, 16) and float(over) == pytest.approx(0.1, abs=0.01)
