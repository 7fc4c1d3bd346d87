"""DRAEM: restore what foreign textures hide, and segment them from both images."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.textures import Textures
from normscan.networks.discriminative import RestoringNetwork, SegmentingNetwork
from normscan.objectives.segmentation import focal
from normscan.objectives.similarity import ssim_map
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.augment import three_of_ten
from normscan.synthesis.corruption import Corrupted
from normscan.synthesis.draws import rotations, spread_out, taken_from


def two_steps(step: int, steps: int) -> float:
    """Learning-rate factor: a fifth after 80 % of the steps, and again after 90 %."""
    return 0.2 ** ((step >= 0.8 * steps) + (step >= 0.9 * steps))


def padded_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity with zeros beyond the frame (11 pixels, deviation 1.5)."""
    pads = (5,) * (2 * (x.ndim - 2))
    # The release takes a range of 2 where the first image falls below -0.5.
    wide = 2.0 if float(x.detach().amin()) < -0.5 else 1.0
    return ssim_map(F.pad(x, pads), F.pad(y, pads), data_range=wide).mean()


class DRAEM(Method):
    """A network that restores and one that segments what it restored; see ``draem``.

    Args:
        restore: image to healthy image.
        segment: both, joined, to logits of healthy and anomalous.
        textures: of the anomalies.
        training: the shared arguments.
    """

    def __init__(
        self, restore: nn.Module, segment: nn.Module, textures: Textures, training: Schedule
    ) -> None:
        super().__init__()
        self.restore, self.segment, self.textures = restore, segment, textures
        self._training = training
        self._corrupt = tasks.draem(clean=0.5)
        textures.files()  # a wrong folder is told before training

    def phases(self) -> list[Phase]:
        modules = [self.restore, self.segment]
        return [phase(modules, self._training, "restore and segment", rhythm=two_steps)]

    def planted(self, batch: Batch) -> tuple[Tensor, Corrupted]:
        """The batch's images, some of them turned, and the same with anomalies."""
        x, n = batch.image, len(batch)
        middle = ((torch.tensor(x.shape[2:]) - 1) / 2).expand(n, -1)
        turned = taken_from(x, middle, middle, matrix=rotations(batch.rng, n, 2, torch.pi / 2))
        some = spread_out(batch.rng.uniform((n, 1)) > 0.7, 2).to(x.device)
        x = torch.where(some, turned, x)
        texture = three_of_ten(self.textures.like(x, batch.rng), batch.rng)
        return x, self._corrupt(x, texture, batch.rng, torch.ones_like(batch.foreground))

    def both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Restored images (B, C, H, W) and probabilities of healthy and anomalous (B, 2, H, W)."""
        restored = self.restore(image)
        return restored, self.segment(torch.cat([restored, image], 1)).softmax(1)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        clean, made = self.planted(batch)
        restored, probability = self.both(made.image)
        return {
            "l2": F.mse_loss(restored, clean),
            "ssim": 1 - padded_ssim(restored, clean),
            "focal": focal(probability[:, 1:], made.label > 0.5),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        restored, probability = self.both(batch.image)
        anomaly = probability[:, 1:]
        window = min(21, 2 * (min(anomaly.shape[2:]) // 2) - 1)
        smooth = F.avg_pool2d(anomaly, window, stride=1, padding=window // 2)
        return Maps(map=anomaly, score=smooth.flatten(1).amax(1), reconstruction=restored)


@register(
    "draem",
    paper="Zavrtanik 2021",
    presets={
        "laptop": {
            "size": 64, "width": 16, "segmenter_width": 16, "steps": 500, "lr": 1e-3,
            "batch_size": 8,
        },
    },
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "size": 32, "width": 8, "segmenter_width": 8, "steps": 110, "lr": 3e-3, "batch_size": 8,
    },
    options=schedule(lr=1e-4, batch_size=8, epochs=700),
)  # fmt: skip
def draem(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 128,
    segmenter_width: int = 64,
    textures: str = "",
    **training: Unpack[Schedule],
) -> Method:
    """DRAEM: a restoring and a segmenting network learn from textures in Perlin outlines.

    Zavrtanik et al., ICCV 2021 (arXiv 2108.07610). Half of the training images stay healthy; in the
    others a texture, changed by three of ten augmentations, shows where turned Perlin noise exceeds
    0.5, with up to 80 % of the host still visible. An autoencoder without skips restores the healthy
    image (squared error and structural similarity), and a U-Net sees its result beside the image and
    segments the texture (focal loss, gamma 2). The map is the U-Net's probability, the score its
    maximum after averaging over 21 x 21 pixels. Adam 1e-4, a fifth of it behind 80 and 90 % of 700
    passes, batches of 8; 30 % of the images are turned by up to 90 degrees. Images from 0 to 1.

    Departures:
        textures: without a folder of ``textures`` (the article takes DTD) they are made of the other
            training images, their tiles shuffled and half of them inverted.
        augmentations: equalisation and hue as our own formulas; numbers as released. Those of hue
            and saturation leave grey images alone.
        scores on small images: the window of 21 pixels fits the image.

    Args:
        width: channels of the restoring network's first level.
        segmenter_width: channels of the segmenting network's first level.
        textures: folder of images to plant, searched with its subfolders; empty for textures made of
            the batch.
    """
    restore = RestoringNetwork(channels, width)
    segment = SegmentingNetwork(2 * channels, 2, segmenter_width)
    return DRAEM(restore, segment, Textures(textures), training)
