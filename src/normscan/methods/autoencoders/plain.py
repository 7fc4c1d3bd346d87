"""Autoencoders with a narrow dense code."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from normscan.methods.base import Batch, Method, Phase, Player, adam
from normscan.methods.reconstruction import Reconstruction, absolute, squared
from normscan.networks.autoencoder import BaurAutoencoder, CompactAutoencoder, Norm
from normscan.objectives.losses import per_image_sum
from normscan.registry import register

Design = Literal["baur", "compact"]

# The comparative study (Baur 2021) erodes the brain by 12 of its 128 pixels; scaled with the size.
BAUR_POSTPROCESS = ("erode=12", "median=5")
LAPTOP_POSTPROCESS = ("erode=2", "median=3")
MEDIANOMALY = {
    "design": "compact",
    "size": 64,
    "latent": 16,
    "lr": 1e-3,
    "beta1": 0.9,
    "batch_size": 64,
    "epochs": 250,
    "patience": None,
    "postprocess": (),
    "reduction": "mean",
}
LAPTOP = {
    "size": 64,
    "width": 16,
    "latent": 64,
    "dropout": 0.1,
    "lr": 1e-3,
    "steps": 600,
    "patience": None,
    "batch_size": 16,
    "postprocess": LAPTOP_POSTPROCESS,
    "preprocess": {"scaling": "median"},
}
TINY = {
    "size": 32,
    "width": 16,
    "latent": 16,
    "dropout": 0.0,
    "lr": 2e-3,
    "steps": 300,
    "patience": None,
    "postprocess": (),
}


def build_network(
    design: Design, dims: int, channels: int, size: int, latent: int, heads: int, width: int,
    dropout: float, norm: Norm,
) -> BaurAutoencoder | CompactAutoencoder:  # fmt: skip
    """Return the encoder and decoder of one of the two comparative studies."""
    if design == "baur":
        return BaurAutoencoder(dims, channels, size, latent, heads, width, dropout, norm)
    # Its first layer has half the channels of the other design's.
    return CompactAutoencoder(dims, channels, size, latent, heads, width // 2)


def plain_phase(
    network: nn.Module,
    lr: float,
    beta1: float,
    batch_size: int,
    epochs: int,
    steps: int | None,
    patience: int | None,
) -> list[Phase]:
    """One phase with Adam that stops early on the healthy validation loss."""
    player = Player("network", [network], adam(lr, betas=(beta1, 0.999)))
    return [
        Phase(
            "reconstruct",
            [player],
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            validate_every="epoch" if steps is None else max(1, steps // 30),
            keep="best" if patience or steps else "last",
            patience=patience,
        )
    ]


@register(
    "ae_dense",
    paper="Baur 2021",
    dims=(2, 3),
    presets={"code": {"norm": "affine"}, "medianomaly": MEDIANOMALY, "laptop": LAPTOP},
    postprocess=BAUR_POSTPROCESS,
    smallest_component=7,
    preprocess={"percentile": 99.8},
    tiny=TINY,
)
def dense_autoencoder(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    design: Design = "baur",
    latent: int = 128,
    width: int = 32,
    dropout: float = 0.2,
    norm: Norm = "batch",
    lr: float = 1e-4,
    beta1: float = 0.5,
    batch_size: int = 8,
    epochs: int = 1000,
    steps: int | None = None,
    patience: int | None = 5,
) -> Method:
    """Autoencoder with a dense code.

    Baur et al., Medical Image Analysis 2021: summed absolute error, early stopping on the healthy
    validation loss, absolute residual, eroded foreground and median filter. ``medianomaly``
    switches to the network, the squared error and the schedule of Cai et al. 2025. ``code`` uses
    batch norms that never normalise, as the released graph does.

    Args:
        dims: spatial axes, 2 or 3.
        channels: of the image.
        size: pixels along each axis, a power of two times 8 (4 for ``compact``).
        design: ``baur`` or ``compact`` (Cai et al. 2025, squared error).
        latent: numbers in the code.
        width: channels of the first convolution.
        dropout: after the linear layers of ``baur``.
        norm: ``batch``, or ``affine`` for a learned scale and shift only.
        lr: learning rate of Adam.
        beta1: first momentum of Adam.
        batch_size: images in an update.
        epochs: passes over the training images at most.
        steps: number of updates instead of ``epochs``.
        patience: looks at the validation loss without gain before stopping; None for never.
    """
    network = build_network(design, dims, channels, size, latent, 1, width, dropout, norm)
    compact = design == "compact"

    def loss(restored: Tensor, batch: Batch) -> dict[str, Tensor]:
        if compact:
            return {"l2": (restored - batch.image).square().mean()}
        return {"l1": per_image_sum((restored - batch.image).abs())}

    def training(network: nn.Module) -> list[Phase]:
        return plain_phase(network, lr, beta1, batch_size, epochs, steps, patience)

    return Reconstruction(network, loss, squared if compact else absolute, training)
