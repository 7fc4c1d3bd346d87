"""Vector quantisation and the two-level autoencoder built on it (VQ-VAE-2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.networks.blocks import layer, pad_to_multiple


class VectorQuantiser(nn.Module):
    """Replaces each vector by the nearest one of a codebook; gradients pass straight through.

    The codebook follows the vectors it stands for as a moving average, with counts smoothed as by
    Laplace (van den Oord et al. 2017, appendix; Razavi et al. 2019).

    Args:
        length: of a vector.
        codes: vectors in the codebook.
        decay: of the moving averages.
        epsilon: of the smoothing.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, length: int = 64, codes: int = 512, decay: float = 0.99, epsilon: float = 1e-5
    ) -> None:
        super().__init__()
        self.decay, self.epsilon = decay, epsilon
        self.register_buffer("codebook", torch.randn(codes, length))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise.

        Args:
            z: (B, length, *spatial).

        Returns:
            The quantised z, the numbers of the codes (B, *spatial), and the mean squared distance
            of z from its codes.
        """
        last = z.movedim(1, -1)
        flat = last.detach().reshape(-1, last.shape[-1])
        # Without |z|^2, which is the same for all codes.
        distance = self.codebook.square().sum(1) - 2 * flat @ self.codebook.T
        numbers = distance.argmin(1)
        chosen = self.codebook[numbers].reshape(last.shape).movedim(-1, 1)
        if self.training:
            self._follow(flat, numbers)
        commitment = (z - chosen).square().mean()
        return z + (chosen - z).detach(), numbers.reshape(last.shape[:-1]), commitment

    @torch.no_grad()
    def _follow(self, vectors: Tensor, numbers: Tensor) -> None:
        one_hot = F.one_hot(numbers, len(self.codebook)).to(vectors)
        self.counts.lerp_(one_hot.sum(0), 1 - self.decay)
        self.sums.lerp_(one_hot.T @ vectors, 1 - self.decay)
        total = self.counts.sum()
        smoothed = self.counts + self.epsilon
        smoothed = smoothed / (total + len(self.counts) * self.epsilon) * total
        self.codebook.copy_(self.sums / smoothed[:, None])


class _Residual(nn.Module):
    """Two convolutions beside the identity; no ReLU after the sum."""

    def __init__(self, dims: int, channels: int, inner: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            layer("conv", dims, channels, inner, 3, padding=1),
            nn.ReLU(),
            layer("conv", dims, inner, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _halve(dims: int, channels_in: int, channels_out: int) -> nn.Module:
    return layer("conv", dims, channels_in, channels_out, 4, stride=2, padding=1)


def _double(dims: int, channels_in: int, channels_out: int) -> nn.Module:
    return layer("conv_transpose", dims, channels_in, channels_out, 4, stride=2, padding=1)


class QuantisedAutoencoder(nn.Module):
    """Two-level vector-quantised autoencoder (VQ-VAE-2, Razavi et al. 2019).

    The bottom grid is a quarter of the image's along each axis, the top grid an eighth; the bottom
    code is conditioned on the top one and the decoder sees both. Any input size is padded to a
    multiple of 8 and cut again.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        width: channels of the features; residual blocks narrow them to a quarter.
        blocks: residual blocks in each encoder and decoder.
        length: of a code vector.
        codes: vectors in each of the two codebooks.
        decay: of the codebooks' moving averages.
    """

    def __init__(
        self,
        dims: int = 2,
        channels: int = 1,
        width: int = 128,
        blocks: int = 2,
        length: int = 64,
        codes: int = 512,
        decay: float = 0.99,
    ) -> None:
        super().__init__()

        def refine(channels_in: int) -> list[nn.Module]:
            parts = [layer("conv", dims, channels_in, width, 3, padding=1)]
            parts += [_Residual(dims, width, max(1, width // 4)) for _ in range(blocks)]
            return [*parts, nn.ReLU()]

        half = max(1, width // 2)
        self.bottom = nn.Sequential(
            _halve(dims, channels, half), nn.ReLU(), _halve(dims, half, width), nn.ReLU(),
            *refine(width),
        )  # fmt: skip
        self.top = nn.Sequential(_halve(dims, width, half), nn.ReLU(), *refine(half))
        self.to_top = layer("conv", dims, width, length, 1)
        self.quantise_top = VectorQuantiser(length, codes, decay)
        self.from_top = nn.Sequential(*refine(length), _double(dims, width, length))
        self.to_bottom = layer("conv", dims, length + width, length, 1)
        self.quantise_bottom = VectorQuantiser(length, codes, decay)
        self.enlarge_top = _double(dims, length, length)
        self.decoder = nn.Sequential(
            *refine(2 * length), _double(dims, width, half), nn.ReLU(),
            _double(dims, half, channels),
        )  # fmt: skip

    def restore(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The restored image and the commitment of both levels."""
        x, cut = pad_to_multiple(x, 8)
        features = self.bottom(x)
        top, _, first = self.quantise_top(self.to_top(self.top(features)))
        both = torch.cat([self.from_top(top), features], dim=1)
        bottom, _, second = self.quantise_bottom(self.to_bottom(both))
        restored = self.decoder(torch.cat([self.enlarge_top(top), bottom], dim=1))
        return restored[cut], first + second

    def forward(self, x: Tensor) -> Tensor:
        return self.restore(x)[0]
