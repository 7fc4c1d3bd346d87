"""Autoencoders of narrow strips, whose errors meet at the crossing of two orientations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.registry import register
from normscan.scores.patches import assemble, check_cover, extract


def leading_basis(second_moment: Tensor, rank: int) -> Tensor:
    """Leading right singular vectors (latent, rank) of codes Z, from Z^T Z (latent, latent)."""
    vectors = torch.linalg.eigh(second_moment.double()).eigenvectors.flip(1)
    return vectors[:, :rank].float().contiguous()


class DualEncoder(nn.Module):
    """Encoder, truncated code, decoder, and the encoder of what was decoded, for one strip shape.

    Args:
        channels: of the strips.
        shape: of the strips, multiples of 8.
        width: channels of the first of three convolutions.
        latent: length of the code.
        rank: singular directions of the codes that are kept.
    """

    def __init__(
        self, channels: int, shape: tuple[int, int], width: int, latent: int, rank: int
    ) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width]
        cells = (widths[-1], shape[0] // 8, shape[1] // 8)
        flat = cells[0] * cells[1] * cells[2]

        def encoder() -> nn.Module:
            parts: list[nn.Module] = []
            for a, b in zip(widths, widths[1:], strict=False):
                parts += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
            return nn.Sequential(*parts, nn.Flatten(), nn.Linear(flat, latent))

        self.encoder, self.second = encoder(), encoder()
        up: list[nn.Module] = [nn.Linear(latent, flat), nn.Unflatten(1, cells)]
        for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True):
            up += [nn.BatchNorm2d(a), nn.ReLU(), nn.ConvTranspose2d(a, b, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*up)
        self.rank = rank
        self.basis: Tensor
        self.register_buffer("basis", torch.eye(latent)[:, :rank].contiguous())

    def forward(self, x: Tensor, learnt: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Code (n, latent), truncated code, restored strips, and the code of these.

        Args:
            x: (n, channels, *shape).
            learnt: truncate to the stored basis; else to the batch's own singular vectors, without
                their gradient, which has no bound where singular values meet.
        """
        z = self.encoder(x)
        basis = self.basis
        if not learnt:
            fixed = z.detach().float()
            basis = leading_basis(fixed.T @ fixed, self.rank)
        kept = z @ basis @ basis.T
        restored = self.decoder(kept)
        return z, kept, restored, self.second(restored)


@dataclass(frozen=True)
class Strips:
    """How an image is cut into lying and standing strips.

    Attributes:
        strip: height and width of a lying one, multiples of 8 and of ``overlap``.
        overlap: strips that cover a pixel along each axis.
        drawn: strips of each orientation that an image gives to an update.
    """

    strip: tuple[int, int]
    overlap: int
    drawn: int

    def __post_init__(self) -> None:
        if any(n % 8 or n % self.overlap for n in self.strip):
            raise ArgumentError(
                f"strip={self.strip}: each side is a multiple of 8 and of {self.overlap}."
            )

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of the lying strips and of the standing ones."""
        h, w = self.strip
        return [(h, w), (w, h)]

    @property
    def strides(self) -> list[tuple[int, int]]:
        """Pixels between strips of each orientation."""
        return [(h // self.overlap, w // self.overlap) for h, w in self.shapes]


class StripMethod(Method):
    """A dual encoder for lying and one for standing strips."""

    def __init__(
        self, networks: Iterable[DualEncoder], strips: Strips,
        weights: tuple[float, float, float], training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.strips, self.weights, self._training = strips, weights, training

    def phases(self) -> list[Phase]:
        return [phase(self.networks, self._training)]

    def cut(self, batch: Batch) -> list[Tensor]:
        """Strips of both orientations, (B, N, C, h, w) each."""
        pairs = zip(self.strips.shapes, self.strips.strides, strict=True)
        return [extract(batch.image, shape, stride) for shape, stride in pairs]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        terms = dict.fromkeys(("restoration", "latent", "singular"), torch.zeros(()))
        for network, strips in zip(self.networks, self.cut(batch), strict=True):
            order = batch.rng.uniform(strips.shape[:2]).argsort(1)[:, : self.strips.drawn]
            chosen = strips[torch.arange(len(batch))[:, None], order.to(strips.device)].flatten(
                0, 1
            )
            z, kept, restored, again = network(chosen, learnt=False)
            parts = (
                (restored - chosen).square().mean(),
                (again - z).square().mean(),
                # Energy of the singular values that the truncation drops.
                1 - kept.square().sum() / z.square().sum().clamp_min(1e-12),
            )
            for name, weight, part in zip(terms, self.weights, parts, strict=True):
                terms[name] = terms[name].to(part) + weight * part
        return terms

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """The basis of all training codes, which serves at test."""
        sums = [torch.zeros(()) for _ in self.networks]
        for batch in batches:
            for i, strips in enumerate(self.cut(batch)):
                z = self.networks[i].encoder(strips.flatten(0, 1)).double()  # type: ignore[operator]
                sums[i] = sums[i].to(z) + z.T @ z
        for network, total in zip(self.networks, sums, strict=True):
            network.basis = leading_basis(total, network.rank)  # type: ignore[arg-type]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        size = (batch.image.shape[2], batch.image.shape[3])
        crossing, restored = torch.ones_like(batch.image[:, :1]), torch.zeros_like(batch.image)
        for network, strips, stride in zip(
            self.networks, self.cut(batch), self.strips.strides, strict=True
        ):
            z, _, again, code = network(strips.flatten(0, 1))
            error = (again - strips.flatten(0, 1)).square().flatten(1).mean(1)
            score = (error + (code - z).square().mean(1)).reshape(*strips.shape[:2], 1, 1, 1)
            spread = score.expand(-1, -1, 1, *strips.shape[3:])
            crossing = crossing * assemble(spread, size, stride)
            restored = restored + assemble(again.reshape(strips.shape), size, stride)
        return Maps(map=crossing, reconstruction=restored / len(self.networks))


@register(
    "dual_ae_svd",
    paper="Aswani 2021",
    dims=(2,),
    presets={
        "laptop": {
            "size": 64, "width": 12, "latent": 64, "rank": 16, "strips": 16, "lr": 1e-3,
            "steps": 400, "preprocess": {"scaling": "median"},
        },
    },
    postprocess=("foreground",),
    reduction="top_5_percent",
    tiny={
        "size": 64, "strip": (8, 16), "width": 8, "latent": 16, "rank": 4, "strips": 8,
        "lr": 2e-3, "steps": 150,
    },
    options=schedule(lr=1e-3, batch_size=16, epochs=100),
)  # fmt: skip
def dual_autoencoder_svd(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    strip: tuple[int, int] = (8, 32),
    overlap: int = 2,
    width: int = 32,
    latent: int = 128,
    rank: int = 32,
    term_weights: tuple[float, float, float] = (1.0, 1.0, 0.1),
    strips: int = 32,
    **training: Unpack[Schedule],
) -> Method:
    """Dual autoencoder of lying and standing strips with truncated codes.

    Aswani and Menaka, BMC Medical Imaging 2021: an encoder, a decoder and a second encoder see
    narrow strips; between the first two the matrix of codes keeps its leading singular values only.
    A strip's score is its squared error plus the squared distance of the two codes; lying and
    standing strips are scored apart and meet at their crossing.

    Departures:
        sizes: no code was released and the article was read in its abstract: strips, network, code,
            rank, term weights and schedule are ours.
        singular values: the term is the share of the codes' energy that the truncation drops.
        truncation: by the batch's singular vectors in training, by those of all training codes at
            test, so that a result doesn't depend on the images beside it.
        crossing: the product of both orientations' means over the strips that cover a pixel.
        image score: the mean of the map's highest 5 %.

    Args:
        size: pixels along each axis, covered by whole strips.
        strip: height and width of a lying strip, multiples of 8.
        overlap: strips that cover a pixel along each axis; they start every side / overlap pixels.
        latent: numbers in the code of a strip.
        rank: singular directions of the codes that are kept.
        term_weights: of the squared error, the distance of the codes and the singular-value term.
        strips: random strips of each orientation that an image gives to an update.
    """
    cut = Strips(strip, overlap, strips)
    for h, _ in cut.shapes:
        check_cover(size, h, h // overlap)
    networks = [DualEncoder(channels, shape, width, latent, rank) for shape in cut.shapes]
    return StripMethod(networks, cut, term_weights, training)
