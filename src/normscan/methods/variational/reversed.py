"""Reversed autoencoders: introspective training, and embeddings of image and restoration alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute, squared
from normscan.methods.schedule import Schedule, with_training
from normscan.methods.variational.vae import Inference, VariationalReconstruction
from normscan.networks.backbones import Backbone
from normscan.networks.divergences import kl_standard_normal
from normscan.networks.introspective import IntroNetwork
from normscan.objectives.cosine import global_distance
from normscan.objectives.perceptual import LearnedPerceptual
from normscan.registry import register
from normscan.synthesis.draws import between, rotations, spread_out, taken_from


class Intro(Schedule):
    """The arguments of an introspective network, those of ``schedule`` among them."""

    size: int
    latent: int
    widths: tuple[int, ...]


INTRO = with_training(
    Intro,
    {"size": 128, "latent": 128, "widths": (64, 128, 256, 512, 512)},
    {
        "size": "pixels along each axis, a multiple of 2 to the number of ``widths``.",
        "latent": "numbers in the code.",
        "widths": "channels before each pooling.",
    },
    lr=5e-5,
    batch_size=8,
    epochs=1500,
    patience=500,
)


def embedding_distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Half the mean squared difference plus 1 - cos of each pair of features, summed."""
    pairs = zip(a, b, strict=True)
    return torch.stack([0.5 * F.mse_loss(u, v) + global_distance(u, v) for u, v in pairs]).sum()


def squares(x: Tensor, restored: Tensor) -> Tensor:
    """Summed squared error of each image, (B,)."""
    return (x - restored).square().flatten(1).sum(1)


def moved(x: Tensor, batch: Batch) -> Tensor:
    """Turned by up to 10 degrees, shifted by a tenth, 0.9 to 1.1 times the size, half mirrored."""
    n, rng, dims = len(x), batch.rng, x.ndim - 2
    sizes = torch.tensor(x.shape[2:])
    middle = ((sizes - 1) / 2).expand(n, -1)
    there = middle + 0.1 * sizes * (2 * rng.uniform((n, dims)) - 1)
    scale, turn = between(rng, (n, 1), 0.9, 1.1), rotations(rng, n, dims, torch.pi / 18)
    mirrored = spread_out(rng.uniform((n, 1)) < 0.5, dims).to(x.device)
    return taken_from(torch.where(mirrored, x.flip(-1), x), middle, there, scale, turn)


class Reversed(VariationalReconstruction):
    """Encoder and decoder play against each other; see ``ra``.

    Args:
        network: ``IntroNetwork``.
        distance: (B, C, H, W) image and restoration to (B, 1, H, W).
        embedding_weight: of the distance of the embeddings.
        augmented: move training images.
        training: the shared arguments of ``schedule``.
        inference: of ``VariationalReconstruction``.
    """

    def __init__(
        self, network: IntroNetwork, distance: LearnedPerceptual, embedding_weight: float,
        augmented: bool, training: Schedule, inference: Inference,
    ) -> None:  # fmt: skip
        super().__init__(
            network, lambda restored, batch: {}, squared, training, kl_weight=1.0, kl_sum=True,
            log_variance=True, inference=inference, samples=1,
        )  # fmt: skip
        self.distance, self.embedding_weight = distance, embedding_weight
        self.augmented, self.training_options = augmented, training

    def phases(self) -> list[Phase]:
        own, steps = self.training_options, self.training_options["steps"]
        optimizer = adam(own["lr"], betas=(own["beta1"], 0.999), weight_decay=own["weight_decay"])
        parts = {"encoder": self.network.encoder, "decoder": self.network.decoder}
        players = [Player(name, [part], optimizer) for name, part in parts.items()]
        return [
            Phase(
                "introspect", players, steps=steps, epochs=own["epochs"], batches=2,
                batch_size=own["batch_size"], keep="best", patience=own["patience"],
                validate_every="epoch" if steps is None else max(1, steps // 10),
            )
        ]  # fmt: skip

    def again(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Restorations of images by drawn codes, and the summed divergence of each, (B,)."""
        mean, log_std = self.encode(x)
        drawn = self.draw(mean, log_std, batch)
        return self.network.decode(drawn), kl_standard_normal(mean, log_std).sum(1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, network = batch.image, self.network
        scale = 1 / x.shape[2] ** 2
        if not network.decoder.training:  # the weights are chosen by the squared error
            return {"error": F.mse_loss(self.again(x, batch)[0], x)}
        if self.augmented:
            x = moved(x, batch)
        mean, log_std = self.encode(x)
        drawn, prior = self.draw(mean, log_std, batch), batch.rng.normal(mean.shape).to(mean)
        if player == "encoder":
            restored, fake = network.decode(drawn), network.decode(prior)
            terms = {
                "error": scale * 0.5 * squares(x, restored).mean(),
                "kl": scale * kl_standard_normal(mean, log_std).sum(1).mean(),
                "embedding": self.embedding_weight
                * embedding_distance(
                    network.encoder.features(x), network.encoder.features(restored.detach())
                ),
            }
            for name, seen in {"restored": restored, "fake": fake}.items():
                twice, kl = self.again(seen.detach(), batch)
                bound = 0.5 * squares(seen, twice) + 128 * kl
                terms[name] = 0.25 * (-2 * scale * bound).exp().mean()
            return terms
        restored, fake = network.decode(drawn.detach()), network.decode(prior)
        terms = {"error": scale * 0.5 * squares(x, restored).mean()}
        for name, seen in {"restored": restored, "fake": fake}.items():
            mean, log_std = self.encode(seen)
            twice = network.decode(self.draw(mean, log_std, batch).detach())
            kl = kl_standard_normal(mean, log_std).sum(1)
            terms[f"{name}_kl"] = scale * 0.5 * kl.mean()
            terms[name] = scale * 0.25e-8 * squares(seen.detach(), twice).mean()
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image.clamp(0, 1)
        restored = self.restored(batch.image, batch)
        even, seen = equalised(x), equalised(restored)
        weight = smoothed(self.distance(x, restored)) * smoothed(self.distance(even, seen))
        return Maps(absolute(even, seen) * weight, reconstruction=restored)


def equalised(x: Tensor) -> Tensor:
    """Contrast-limited adaptive equalisation of each channel of images (B, C, H, W) in 0..1."""
    from skimage.exposure import equalize_adapthist

    planes = x.flatten(0, 1).double().cpu().numpy()
    # It divides by the range of a plane, which a plane of one value doesn't have.
    found = [equalize_adapthist(p) if np.ptp(p) > 0 else p for p in planes]
    return torch.from_numpy(np.stack(found)).to(x).reshape(x.shape)


def smoothed(x: Tensor) -> Tensor:
    """A Gaussian of 2 pixels over images (B, C, H, W)."""
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(x.cpu().numpy(), (0, 0, 2, 2))).to(x)


_SMALL: dict[str, Any] = {
    "backbone": "resnet18.tv_in1k",
    "taps": ("act1", "layer1", "layer2"),
    "lr": 5e-4,
    "patience": None,
}


@register(
    "ra",
    paper="Bercea 2023",
    presets={
        "laptop": {
            **_SMALL, "size": 64, "latent": 64, "widths": (16, 32, 64, 128), "steps": 500,
            "preprocess": {**OWN_RANGE, "scaling": "median", "limit": 1.0},
        }
    },
    reduction="mean",
    preprocess={"scaling": "minmax", "limit": 1.0, "crop": "none", "fit": "pad"},
    tiny={
        **_SMALL, "size": 32, "latent": 16, "widths": (8, 16, 32), "steps": 42, "lr": 4e-3,
        "batch_size": 4,
        "weights": "random", "taps": ("act1",), "augmented": False,
        "preprocess": {**OWN_RANGE, "scaling": "auto", "limit": 1.0},
    },
    options=INTRO,
)  # fmt: skip
def reversed_autoencoder(
    dims: int = 2,
    channels: int = 1,
    backbone: str = "vgg16.tv_in1k",
    taps: tuple[str, ...] = (
        "features.3",
        "features.8",
        "features.15",
        "features.22",
        "features.29",
    ),
    weights: str = "hub",
    heads: str | None = None,
    embedding_weight: float = 0.005,
    augmented: bool = True,
    inference: Inference = "sample",
    **options: Unpack[Intro],
) -> Method:
    """Reversed autoencoder: restorations that an introspective encoder takes for healthy scans.

    Bercea, Wiestler, Rueckert and Schnabel, MIDL 2023, on slices of 128 pixels: the networks and the
    game of Soft-IntroVAE (Daniel and Tamar, CVPR 2021), in which the encoder gives restorations and
    images of drawn codes a low bound and the decoder a high one, plus 0.005 times the distance of
    the embeddings of image and restoration. Squared errors are summed; all but the last term are
    divided by the number of pixels. Adam 5e-5 for each of both, batches of 8, ends after 500 epochs
    without gain in the validation error. The map is the difference of the adaptively equalised
    image and restoration, times the smoothed LPIPS of the two and of their equalised forms; a
    slice's score is its mean. The network's output and what it sees at test lie in 0..1.

    Departures:
        LPIPS: on VGG16, whose weights of the channels are given by ``heads`` and are all 1 without;
            on SqueezeNet, with its learnt weights, in the release.
        codes: encoder and decoder see a batch of their own, so the decoder's codes come from the
            encoder as it was just updated; of the same batch and before that in the release.
        intensities: not brought to 256 grey values.
        augmentation: the border's pixels go on beyond the frame; zeros in the release.
        rate: constant; the release lowers it once its validation loss, taken for the number of an
            epoch, reaches 100.
        detection: left to the detector; the release thresholds at 0.009, set on healthy pixels.

    Args:
        dims: spatial axes, 2.
        channels: of the image, 1 or 3; grey is repeated for the backbone.
        backbone: timm name with the tag of its weights, for LPIPS.
        taps: layers of it that are compared.
        weights: ``hub``, ``pip:vgg16`` from an installed package, ``random``, or the path of a
            state dict.
        heads: path of the state dict of LPIPS's weights of the channels, for VGG16
            ``lpips/weights/v0.1/vgg.pth`` of the package ``lpips``; None for 1 for all.
        embedding_weight: of the distance of the embeddings.
        augmented: turn, shift, resize and mirror training images.
        inference: ``sample`` draws the code at test as the release does; ``mean`` takes its mean.
    """
    network = IntroNetwork(dims, channels, options["size"], options["latent"], options["widths"])
    distance = LearnedPerceptual(Backbone(backbone, taps, weights, channels=channels), heads)
    return Reversed(network, distance, embedding_weight, augmented, options, inference)
