"""A codebook, transformers that say how likely its codes are, and unlikely ones healed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import absolute
from normscan.methods.schedule import Schedule, phase, settings, with_training
from normscan.networks.ordered import OrderedCodes
from normscan.registry import register


class Quantised(Schedule):
    """The arguments of codebook and transformers, those of ``schedule`` among them."""

    size: int
    widths: tuple[int, ...]
    blocks: int
    codes: int
    length: int
    dim: int
    layers: int
    heads: int
    orders: int


QUANTISED = with_training(
    Quantised,
    {
        "size": 224, "widths": (256, 256, 256), "blocks": 3, "codes": 32, "length": 64, "dim": 256,
        "layers": 14, "heads": 8, "orders": 8,
    },
    {
        "size": "pixels along each axis, a multiple of 2 to the number of ``widths``.",
        "widths": "channels behind each halving of the grid.",
        "blocks": "residual blocks behind each halving.",
        "codes": "vectors in the codebook.",
        "length": "numbers in a vector.",
        "dim": "numbers in a token of the transformers, a multiple of ``heads``.",
        "layers": "of a transformer.",
        "heads": "of its attention.",
        "orders": "of the codes, each with a transformer of its own; up to 8 in the plane, 48 in 3D.",
    },
    lr=5e-4,
    batch_size=32,
    epochs=100,
)  # fmt: skip


@dataclass(frozen=True)
class Healing:
    """How unlikely codes are found and replaced.

    Attributes:
        threshold: codes with a likelihood below it are unlikely.
        quantile: and, where it is given, instead those below this quantile of the image's own.
        samples: drawn healings that are averaged for each order; 0 for one of the likeliest codes.
        border: how the mask of unlikely codes is enlarged.
    """

    threshold: float = 0.005
    quantile: float | None = None
    samples: int = 1
    border: Literal["linear", "nearest"] = "linear"

    def unlikely(self, log_likelihood: Tensor) -> Tensor:
        """(B, cells) bool of (B, cells)."""
        if self.quantile is None:
            return log_likelihood.exp() < self.threshold
        return log_likelihood < log_likelihood.quantile(self.quantile, dim=1, keepdim=True)

    def enlarged(self, mask: Tensor, size: tuple[int, ...]) -> Tensor:
        """Masks (B, *grid) on the grid of the images, (B, 1, *size), 0 to 1."""
        mode = "nearest" if self.border == "nearest" else {2: "bilinear", 3: "trilinear"}[len(size)]
        return F.interpolate(mask[:, None].float(), size, mode=mode)


class CodeHealing(Method):
    """Restores what the codes that a transformer would expect say; see ``vqvae_transformer``.

    Args:
        network: MONAI's ``VQVAE``.
        prior: transformers of its codes.
        healing: how unlikely codes are replaced.
        first: training of the network.
        second: training of the transformers.
    """

    def __init__(
        self, network: nn.Module, prior: OrderedCodes, healing: Healing, first: Schedule,
        second: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network: Any = network
        self.prior, self.healing = prior, healing
        self.first, self.second = first, second

    def phases(self) -> list[Phase]:
        return [
            phase(self.network, self.first, "quantise"), phase(self.prior, self.second, "predict")
        ]  # fmt: skip

    @torch.no_grad()
    def numbers(self, x: Tensor) -> Tensor:
        """The codes (B, *grid) of images."""
        found: Tensor = self.network.index_quantize(x)
        return found.long()

    @torch.no_grad()
    def revive(self, batch: Batch) -> None:
        """Put vectors that less than half a feature took of late onto drawn features."""
        book: Any = self.network.quantizer.quantizer
        features = self.network.encode(batch.image).flatten(2)
        n, _, cells = features.shape
        code = torch.arange(len(book.ema_cluster_size))
        place = (batch.rng.uniform((n, len(code))) * cells).long()[code % n, code]
        fresh, lost = features[code % n, :, place], (book.ema_cluster_size < 0.5)[:, None]
        for vectors in (book.embedding.weight, book.ema_w):
            vectors.copy_(torch.where(lost, fresh, vectors))
        book.ema_cluster_size.clamp_min_(torch.where(lost[:, 0], 1.0, 0.0))

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x = batch.image
        if phase == "quantise":
            if self.network.training:
                self.revive(batch)
            restored, commitment = self.network(x)
            return {"l1": (restored - x).abs().mean(), "commitment": commitment}
        numbers, prior = self.numbers(x), self.prior
        each = [
            -prior.log_likelihood(prior.sequence(numbers, order), order).mean()
            for order in range(len(prior.orders))
        ]
        # Summed, so that each transformer has the gradient that it had by itself.
        return {"code": torch.stack(each).sum()}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x, prior, healing = batch.image, self.prior, self.healing
        numbers = self.numbers(x)
        found, restorations, surprise = [], [], []
        for order in range(len(prior.orders)):
            sequence = prior.sequence(numbers, order)
            likelihood = prior.log_likelihood(sequence, order)
            surprise.append(-likelihood.sum(1))
            unlikely = healing.unlikely(likelihood)
            mask = healing.enlarged(prior.placed(unlikely, order), tuple(x.shape[2:]))
            for _ in range(max(1, healing.samples)):
                chance = batch.rng.uniform(sequence.shape).to(x) if healing.samples else None
                healed = prior.placed(prior.healed(sequence, unlikely, order, chance), order)
                restored = self.network.decode_samples(healed)
                found.append(mask * absolute(x, restored))
                restorations.append(restored)
        anomaly, score, restored = (
            torch.stack(values).mean(0) for values in (found, surprise, restorations)
        )
        return Maps(anomaly, score, restored)


def quantised_network(dims: int, channels: int, options: Quantised, deviation: float) -> nn.Module:
    """MONAI's VQVAE with 4x4 convolutions of stride 2 and a codebook of moving averages.

    Args:
        dims: 2 or 3.
        channels: of input and output.
        options: sizes.
        deviation: of the initial vectors of the codebook.
    """
    from monai.networks.nets import VQVAE

    widths = list(options["widths"])
    network = VQVAE(
        dims, channels, channels, channels=widths, num_res_channels=widths,
        num_res_layers=options["blocks"],
        downsample_parameters=[(2, 4, 1, 1)] * len(widths),
        upsample_parameters=[(2, 4, 1, 1, 0)] * len(widths),
        num_embeddings=options["codes"], embedding_dim=options["length"],
    )  # fmt: skip
    book: Any = network.quantizer.quantizer
    with torch.no_grad():
        book.embedding.weight.mul_(deviation)
        book.ema_w.mul_(deviation)
    return network


_RANGE: dict[str, Any] = {**OWN_RANGE, "scaling": "median"}


@register(
    "vqvae_transformer",
    paper="Pinaya 2021",
    dims=(2, 3),
    presets={
        "code": {
            "size": 64, "widths": (256, 256), "blocks": 2, "codes": 16, "length": 64, "dim": 128,
            "layers": 16, "heads": 16, "orders": 1, "epochs": 20, "batch_size": 256,
            "transformer_epochs": 20, "transformer_lr": 1e-4, "transformer_batch_size": 32,
            "quantile": 0.03, "samples": 0, "border": "nearest",
        },
        "laptop": {
            "size": 64, "widths": (32, 64), "blocks": 1, "length": 32, "dim": 64, "layers": 3,
            "heads": 4, "orders": 2, "lr": 1e-3, "steps": 300, "batch_size": 16,
            "transformer_steps": 300, "transformer_lr": 1e-3, "transformer_batch_size": 8,
            "codebook_deviation": 0.1, "preprocess": _RANGE,
        },
    },
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "stretch"},
    tiny={
        "size": 32, "widths": (16, 32), "blocks": 1, "codes": 16, "length": 8, "dim": 16,
        "layers": 1, "heads": 2, "orders": 2, "lr": 3e-3, "steps": 60, "batch_size": 8,
        "transformer_steps": 60, "transformer_lr": 1e-2, "transformer_batch_size": 8,
        "threshold": 0.05, "codebook_deviation": 0.02, "preprocess": {**OWN_RANGE, "scaling": "auto"},
    },
    options=QUANTISED,
)  # fmt: skip
def healed_codes(
    dims: int = 2,
    channels: int = 1,
    threshold: float = 0.005,
    quantile: float | None = None,
    samples: int = 1,
    border: Literal["linear", "nearest"] = "linear",
    codebook_deviation: float = 1.0,
    transformer_lr: float = 5e-4,
    transformer_batch_size: int = 32,
    transformer_epochs: int = 100,
    transformer_steps: int | None = None,
    **options: Unpack[Quantised],
) -> Method:
    """VQ-VAE whose unlikely codes an ensemble of autoregressive transformers replaces.

    Pinaya et al., MIDL 2021 and Medical Image Analysis 2022, on FLAIR slices of 224 pixels: a
    vector-quantised autoencoder turns a slice into 28 x 28 codes of a small codebook; transformers,
    each for one of eight orders of these, learn how likely a code is given those before it. Codes
    below a likelihood of 0.005 are drawn anew in turn, the result is decoded, and the map is the
    absolute difference times the enlarged mask of those codes, averaged over the orders. A slice's
    score is the negative log-likelihood of its codes. ``code`` is MONAI's tutorial: slices of 64
    pixels, one order, the lowest 3 % of an image's own codes replaced by the likeliest ones.

    Departures:
        sizes: the authors' code of 2021 isn't readable; codebook, layers, rates and epochs are near
            to the article's as far as these were known. Networks are those of MONAI, by the group.
        attention: exact; approximate in the article (Performer).
        loss: absolute error and a quarter of the commitment, as MONAI's tutorial; the 3D article
            adds spectral, perceptual and adversarial terms.
        codebook: vectors that hardly any feature takes are put onto features of the batch; they stay
            lost in MONAI, where small networks end with a single one.
        beginning: its token counts in the likelihood, as in MONAI, and is never drawn.
        tutorial: it trains the autoencoder on all kinds of images of its set, ours on healthy ones;
            without its augmentation.

    Args:
        threshold: likelihood below which a code is replaced.
        quantile: if given, those below this quantile of the image's own codes instead, so that
            healthy images lose some, too.
        samples: drawn replacements that are averaged for each order; 0 takes the likeliest codes.
        border: enlarge the mask of codes ``linear`` or ``nearest``.
        codebook_deviation: of the initial vectors of the codebook; where features are much smaller
            all of them begin with the same code.
        transformer_lr: learning rate of the transformers.
        transformer_batch_size: images in an update of theirs.
        transformer_epochs: passes over the training images of theirs.
        transformer_steps: number of updates instead of ``transformer_epochs``.
    """
    size, step = options["size"], 2 ** len(options["widths"])
    if size % step:
        raise ArgumentError(
            f"size={size} can't be halved {len(options['widths'])} times, once for each of the "
            f"widths: give a multiple of {step}, or fewer widths."
        )
    prior = OrderedCodes(
        options["codes"], [size // step] * dims, options["orders"], options["dim"],
        options["layers"], options["heads"],
    )  # fmt: skip
    second = settings(
        lr=transformer_lr, batch_size=transformer_batch_size, epochs=transformer_epochs,
        steps=transformer_steps,
    )  # fmt: skip
    healing = Healing(threshold, quantile, samples, border)
    return CodeHealing(
        quantised_network(dims, channels, options, codebook_deviation),
        prior,
        healing,
        options,
        second,
    )
