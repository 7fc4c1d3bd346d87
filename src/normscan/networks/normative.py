"""Networks with a spatial code of one channel, as priors of healthy images (You et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.networks.blocks import layer
from normscan.networks.divergences import kl_normals, kl_standard_normal

# A shape to standard normal numbers.
Draw = Callable[[Sequence[int]], Tensor]
Belief = Literal["density", "release"]


def _grown(dims: int, a: int, b: int) -> list[nn.Module]:
    """Two transposed convolutions, nearest enlargement, zeros around it, a convolution's place."""
    return [
        layer("conv_transpose", dims, a, b, 3), nn.ReLU(),
        layer("conv_transpose", dims, b, b, 3), nn.ReLU(),
        nn.Upsample(scale_factor=2), (nn.ZeroPad2d, nn.ZeroPad3d)[dims - 2](2),
    ]  # fmt: skip


def _summed(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)


class NormativeVAE(nn.Module):
    """Six 3x3 convolutions without padding to a grid of codes, and the way back to mean and spread.

    The first and the fourth have stride 2; ReLUs, no norm; a linear mean and the log of the inverse
    variance of each value.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        size: pixels along each axis: 4 k + 14 with k of 5 or more.
        width: channels of each convolution.
        latent: channels of the code.
        least_std: floor of the deviation of a value; its ceiling is 1.

    Raises:
        ArgumentError: the size doesn't come back from its code.
    """

    def __init__(
        self, dims: int, channels: int, size: int, width: int, latent: int, least_std: float
    ) -> None:
        super().__init__()
        if size < 34 or size % 4 != 2:
            near = max(34, round((size - 2) / 4) * 4 + 2)
            raise ArgumentError(f"size={size} doesn't fit this network. Use size={near}.")
        down: list[nn.Module] = []
        for i, stride in enumerate((2, 1, 1, 2, 1, 1)):
            down += [layer("conv", dims, width if i else channels, width, 3, stride), nn.ReLU()]
        self.encoder = nn.Sequential(*down)
        self.mean, self.log_variance = (layer("conv", dims, width, latent, 1) for _ in range(2))
        self.decoder = nn.Sequential(
            layer("conv", dims, latent, width, 1), nn.ReLU(), *_grown(dims, width, width),
            layer("conv", dims, width, width, 3), nn.ReLU(), *_grown(dims, width, width),
        )  # fmt: skip
        self.restored, self.precision = (layer("conv", dims, width, channels, 3) for _ in range(2))
        self.most = -2 * math.log(least_std + 1e-8)

    def sampled(self, features: Tensor, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """A drawn code, its mean and log deviation."""
        mean, log_std = self.mean(features), self.log_variance(features) / 2
        return mean + log_std.exp() * draw(mean.shape).to(mean), mean, log_std

    def code(self, x: Tensor, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """A drawn code and the divergences of its distribution from the prior, (B,) each."""
        z, mean, log_std = self.sampled(self.encoder(x), draw)
        return z, {"kl": _summed(kl_standard_normal(mean, log_std))}

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log inverse variance of the image, (B, C, *spatial) each."""
        features = self.decoder(z)
        return self.restored(features), self.precision(features).clamp(0, self.most)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.mean(self.encoder(x)))[0]


class NormativeGMVAE(NormativeVAE):
    """A ``NormativeVAE`` whose code is expected near one of several centres.

    A second code w, expected standard normal, says where the centres of each position lie and how
    wide they are (Dilokthanakul et al. 2016).

    Args:
        *parts: of ``NormativeVAE``.
        classes: centres.
        floor: of the divergence of the classes at each position.
        belief: which class a code is from: by its log ``density``, or as the ``release`` has it,
            where the log of the inverse variance stands with the opposite sign and twice.
    """

    def __init__(
        self, dims: int, channels: int, size: int, width: int, latent: int, least_std: float,
        *, classes: int, floor: float, belief: Belief,
    ) -> None:  # fmt: skip
        super().__init__(dims, channels, size, width, latent, least_std)
        self.classes, self.floor = classes, floor
        self.share = 0.5 if belief == "density" else -1.0
        self.second_mean, self.second_log_variance = (
            layer("conv", dims, width, 1, 1) for _ in range(2)
        )
        self.prior = nn.Sequential(layer("conv", dims, 1, width, 1), nn.ReLU())
        self.centre, self.sharpness = (
            layer("conv", dims, width, latent * classes, 1) for _ in range(2)
        )

    def code(self, x: Tensor, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.encoder(x)
        mean, log_std = self.second_mean(features), self.second_log_variance(features) / 2
        w = mean + log_std.exp() * draw(mean.shape).to(mean)
        z, z_mean, z_log_std = self.sampled(features, draw)
        expected = self.prior(w)
        centre, sharpness = (
            head(expected).unflatten(1, (-1, self.classes))
            for head in (self.centre, self.sharpness)
        )
        belief = self.belief(z, centre, sharpness)
        each = kl_normals(z_mean[:, :, None], z_log_std[:, :, None], centre, -sharpness / 2)
        uneven = (belief * (self.classes * belief + 1e-8).log()).sum(1)
        return z, {
            "conditional_kl": _summed((belief[:, None] * each).sum(2)),
            "second_kl": _summed(kl_standard_normal(mean, log_std)),
            "class_kl": _summed(uneven.clamp_min(self.floor)),
        }

    def belief(self, z: Tensor, centre: Tensor, sharpness: Tensor) -> Tensor:
        """How probable each class is at each position, (B, classes, *positions).

        Args:
            z: (B, latent, *positions).
            centre: (B, latent, classes, *positions).
            sharpness: log inverse variances, of the same shape.
        """
        away = (z[:, :, None] - centre).square() * sharpness.exp()
        return (self.share * sharpness - away / 2).sum(1).softmax(1)
