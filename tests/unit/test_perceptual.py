"""The relative perceptual distance by hand, and networks cut inside a row of layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normscan.errors import ArgumentError, WeightsError
from normscan.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone, weights_from_state
from normscan.networks.taps import Row
from normscan.objectives.perceptual import ChannelStatistics, LearnedPerceptual, RelativePerceptual


class Twofold(nn.Module):
    """Stands for a backbone: the image and its square at half the resolution."""

    taps = ("t",)
    channels = (2,)

    def forward(self, x):
        pooled = nn.functional.avg_pool2d(x, 2)
        return {"t": torch.cat([pooled, 10 * pooled.square()], 1)}


@pytest.mark.parametrize("spread", ["std", "variance"])
def test_distance_by_hand(spread):
    x, restored = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    distance = RelativePerceptual(Twofold(), spread)
    got = distance(x, restored)
    f, g = Twofold()(x)["t"], Twofold()(restored)["t"]
    for c in range(2):
        values = f[:, c].flatten()
        mean = values.mean()
        by = values.std(unbiased=False) if spread == "std" else values.var(unbiased=False)
        f[:, c], g[:, c] = (f[:, c] - mean) / by, (g[:, c] - mean) / by
    for b in range(3):
        torch.testing.assert_close(
            got[b], (f[b] - g[b]).abs() / f[b].abs().mean(), rtol=1e-3, atol=0
        )
    distance.eval()
    residual = distance.residual(x, restored)
    assert residual.shape == (3, 1, 8, 8)
    assert residual.mean().item() == pytest.approx(got.mean().item(), rel=0.1)


def test_statistics_of_several_batches_are_those_of_all_and_rest_at_test():
    statistics = ChannelStatistics(3)
    features = torch.randn(5, 4, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1
    for part in features:
        statistics(part)
    values = features.transpose(1, 2).transpose(0, 1).flatten(1)
    torch.testing.assert_close(statistics.mean.flatten(), values.mean(1))
    torch.testing.assert_close(statistics.variance.flatten(), values.var(1, unbiased=False))
    before = statistics.mean.clone()
    statistics.eval()(features[0] + 100)
    assert torch.equal(statistics.mean, before)


def test_a_channel_that_is_never_excited_gets_a_floor():
    statistics = ChannelStatistics(2)
    statistics(torch.stack([torch.zeros(4, 4), torch.randn(4, 4)])[None])
    quiet, loud = statistics.variance.flatten().tolist()
    assert quiet == pytest.approx(1e-3 * loud / 2, rel=1e-3)


def test_gradients_reach_the_restoration_and_not_the_image():
    x, restored = torch.rand(2, 2, 1, 8, 8).requires_grad_(True).unbind()
    restored.retain_grad(), x.retain_grad()
    RelativePerceptual(Twofold())(x, restored).mean().backward()
    assert restored.grad.any() and x.grad is None


# --- rows


def test_relu4_2_of_vgg19():
    backbone = Backbone("vgg19.tv_in1k", ("features.22",), "random")
    assert isinstance(backbone.network, Row)
    assert backbone.channels == [512] and backbone.strides == [8]
    widths = [m.out_channels for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert widths == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 2
    assert isinstance(backbone.network.features[-1], nn.ReLU)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.train().network.training


def test_a_row_is_normalised_cut_and_loaded_from_a_file(tmp_path):
    first = Backbone("vgg11", ("features.2",), "random")
    state = first.network.state_dict()
    assert set(state) == {"features.0.weight", "features.0.bias"}
    torch.save({**state, "classifier.weight": torch.zeros(1)}, tmp_path / "vgg.pth")
    second = Backbone("vgg11", ("features.2",), str(tmp_path / "vgg.pth"))
    x = torch.rand(1, 1, 8, 8)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    convolved = nn.functional.conv2d((x - mean) / std, *state.values(), padding=1)
    expected = nn.functional.max_pool2d(convolved.relu(), 2)
    torch.testing.assert_close(second(x)["features.2"], expected)


def test_rows_that_are_not_there(tmp_path):
    with pytest.raises(ArgumentError, match="features.0 to features.20"):
        Backbone("vgg11", ("features.21",), "random")
    with pytest.raises(ArgumentError, match="no row of features"):
        Backbone("resnet18", ("features.3",), "random")
    with pytest.raises(ArgumentError, match="Did you mean 'vgg19'"):
        Backbone("vgg_19", ("features.3",), "random")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="don't fit vgg11 up to features.2"):
        Backbone("vgg11", ("features.2",), str(tmp_path / "empty.pth"))
    with weights_from_state():  # A saved detector brings its own.
        Backbone("vgg11", ("features.2",), str(tmp_path / "empty.pth"))


def test_learned_distance_by_hand(tmp_path):
    from safetensors.torch import save_file

    x, restored = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 2.0])
    save_file({"lin0.model.1.weight": weights.reshape(1, 2, 1, 1)}, tmp_path / "heads.safetensors")
    got = LearnedPerceptual(Twofold(), str(tmp_path / "heads.safetensors"))(x, restored)
    f, g = (nn.functional.normalize(Twofold()(v)["t"], dim=1) for v in (x, restored))
    near = 0.5 * (f - g)[:, 0] ** 2 + 2 * (f - g)[:, 1] ** 2
    expected = nn.functional.interpolate(near[:, None], (8, 8), mode="bilinear")
    torch.testing.assert_close(got, expected)
    assert not LearnedPerceptual(Twofold())(x, x).any()


@pytest.mark.parametrize("state", [{"lin0.model.1.weight": (3,)}, {"other": (2,)}])
def test_heads_of_another_backbone_are_refused(tmp_path, state):
    from safetensors.torch import save_file

    path = tmp_path / "heads.safetensors"
    save_file({k: torch.ones(v) for k, v in state.items()}, path)
    with pytest.raises(WeightsError, match="weighs other features"):
        LearnedPerceptual(Twofold(), str(path))
