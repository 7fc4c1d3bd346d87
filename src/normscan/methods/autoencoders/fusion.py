"""A segmentation network that learns from what an autoencoder finds in unlabelled scans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Unpack

import numpy as np
import torch
from torch import Tensor, nn

from normscan.methods.autoencoders.plain import BAUR_RANGE, OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.reconstruction import positive
from normscan.methods.schedule import Schedule, phase, schedule, settings
from normscan.networks.autoencoder import BaurAutoencoder, Code, Levels
from normscan.networks.unet import UNet
from normscan.objectives.gradients import gradient_difference
from normscan.objectives.segmentation import soft_dice, weighted_cross_entropy
from normscan.registry import register
from normscan.scores.postprocess import apply_chain, parse


class Threshold(nn.Module):
    """A number that training moves to the mean of what it sees.

    A parameter, so that it is saved, resumed and frozen as all others are. Gradient descent with
    the rate 1 / n at step n makes it the running mean, with no rate to choose.
    """

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def loss(self, values: Tensor) -> Tensor:
        """Half the squared distance from values (B,)."""
        return 0.5 * (self.value - values).square().mean()

    def phase(self, name: str, steps: int, batch_size: int) -> Phase:
        """Move it to the mean of ``steps`` healthy batches."""
        player = Player(
            "threshold", [self], lambda p: torch.optim.SGD(p, lr=1.0),
            schedule=lambda step, steps: 1 / (step + 1),
        )  # fmt: skip
        return Phase(name, [player], steps, batch_size=batch_size)


@dataclass(frozen=True)
class PseudoLabels:
    """How a label is made of what an autoencoder finds.

    Attributes:
        cleaning: post-processing chain of the map.
        quantile: of a healthy map's foreground, whose mean is the threshold.
        steps: healthy batches that the threshold comes from.
        band: share of the threshold within which pixels below and above it don't count.
        weight: of a pixel with a pseudo-label; one with a label counts 1.
    """

    cleaning: tuple[str, ...]
    quantile: float
    steps: int
    band: float
    weight: float

    def __post_init__(self) -> None:
        parse(self.cleaning)


class PseudoLabelSegmentation(Method):
    """Restore, find a threshold on healthy scans, segment by it; see ``unsup_sup_fusion``.

    Args:
        restorer: restores healthy images.
        segmenter: images to logits (B, 1, *spatial).
        training: the shared arguments, of the restorer.
        segmenting: the shared arguments, of the segmenter.
        pseudo: how labels are made.
        labelled: the segmenter also learns from masks.
        gradient_weight: of the gradient difference in the restorer's loss.
    """

    def __init__(
        self, *, restorer: nn.Module, segmenter: nn.Module, training: Schedule,
        segmenting: Schedule, pseudo: PseudoLabels, labelled: bool, gradient_weight: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.restorer, self.segmenter, self.threshold = restorer, segmenter, Threshold()
        self._training, self._segmenting, self._labelled = training, segmenting, labelled
        self.pseudo, self.gradient_weight = pseudo, gradient_weight

    def phases(self) -> list[Phase]:
        part = "unlabelled+anomalous" if self._labelled else "unlabelled"
        segment = phase(self.segmenter, self._segmenting, "segment", part, keep="last")
        return [
            phase(self.restorer, self._training, "restore"),
            self.threshold.phase("threshold", self.pseudo.steps, self._training["batch_size"]),
            # The loss on healthy scans says nothing: an empty mask is the best there.
            replace(segment, validate_every=0),
        ]

    @torch.no_grad()
    def residual(self, batch: Batch) -> Tensor:
        """What is brighter than the restoration, cleaned: (B, 1, *spatial)."""
        found = positive(batch.image, self.restorer(batch.image))
        images, foregrounds = batch.image.cpu().numpy(), batch.foreground[:, 0].cpu().numpy()
        maps = [
            apply_chain(self.pseudo.cleaning, m, inside, image)
            if inside.any()
            else np.zeros_like(m)
            for m, inside, image in zip(
                found[:, 0].float().cpu().numpy(), foregrounds, images, strict=True
            )
        ]
        return torch.from_numpy(np.stack(maps))[:, None].to(found.device)

    def labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Masks and weights of the pixels, (B, 1, *spatial): given ones, else pseudo-labels."""
        above = self.residual(batch) - self.threshold.value
        sure = above.abs() > self.pseudo.band * self.threshold.value
        mask, weight = above > 0, self.pseudo.weight * sure
        if batch.lesion is not None and batch.label is not None:
            # An anomalous scan without a drawn lesion is as good as unlabelled.
            known = (batch.label == 0) | ((batch.label == 1) & batch.lesion.flatten(1).any(1))
            known = known.reshape(-1, *[1] * (mask.ndim - 1))
            mask = torch.where(known, batch.lesion, mask)
            weight = torch.where(known, torch.ones_like(weight), weight)
        return mask, weight

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "threshold":
            maps, inside = self.residual(batch).float(), batch.foreground
            quantiles = [
                np.quantile(m[f].cpu().numpy(), self.pseudo.quantile) if f.any() else 0.0
                for m, f in zip(maps, inside, strict=True)
            ]
            return {"quantile": self.threshold.loss(maps.new_tensor(quantiles))}
        if phase == "segment":
            mask, weight = self.labels(batch)
            logits = self.segmenter(batch.image)
            return {
                "dice": soft_dice(logits.sigmoid(), mask, weight),
                "cross_entropy": weighted_cross_entropy(logits, mask, weight),
            }
        restored = self.restorer(batch.image)
        difference = restored - batch.image
        return {
            "l1": difference.abs().mean(),
            "l2": difference.square().mean(),
            "gradient": self.gradient_weight * gradient_difference(batch.image, restored),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        probability = self.segmenter(batch.image).sigmoid()
        return Maps(map=probability, reconstruction=self.restorer(batch.image))


@register(
    "unsup_sup_fusion",
    paper="Baur 2019",
    regime="healthy+unlabelled",
    dims=(2, 3),
    presets={
        "laptop": {
            "size": 64, "width": 16, "segment_width": 8, "segment_depth": 3, "dropout": 0.1,
            "batch_size": 16, "lr": 1e-3, "steps": 400, "patience": None, "threshold_steps": 20,
            "segment_lr": 1e-3, "segment_steps": 250, "preprocess": {**OWN_RANGE, "scaling": "median"},
            "cleaning": ("erode=2", "hyperintense=0.9", "median=3"),
        },
    },
    postprocess=("foreground",),
    smallest_component=7,
    preprocess=BAUR_RANGE,
    tiny={
        "size": 32, "width": 8, "segment_width": 8, "segment_depth": 2, "dropout": 0.0, "lr": 2e-3,
        "steps": 80, "patience": None, "threshold_steps": 4, "segment_lr": 3e-3,
        "segment_steps": 80, "segment_batch_size": 4, "cleaning": ("hyperintense=0.8",),
        "preprocess": {**OWN_RANGE, "scaling": "auto"},
    },
    options=schedule(lr=1e-4, batch_size=8, epochs=1000, patience=5),
)  # fmt: skip
def segmentation_from_pseudo_labels(
    dims: int = 2,
    channels: int = 1,
    size: int = 128,
    width: int = 32,
    dropout: float = 0.2,
    gradient_weight: float = 1.0,
    cleaning: tuple[str, ...] = ("erode=12", "hyperintense=0.9", "median=5"),
    quantile: float = 0.99,
    band: float = 0.25,
    threshold_steps: int = 200,
    labelled: bool = False,
    pseudo_weight: float = 0.5,
    segment_width: int = 64,
    segment_depth: int = 4,
    segment_lr: float = 1e-4,
    segment_batch_size: int = 8,
    segment_epochs: int = 100,
    segment_steps: int | None = None,
    **training: Unpack[Schedule],
) -> Method:
    """U-Net trained on what an autoencoder finds in unlabelled scans.

    Baur et al., MIDL 2019, for bright lesions: an autoencoder with a spatial code learns healthy
    scans by absolute and squared error and by the difference of the gradients; what is brighter
    than its restoration of an unlabelled scan, cleaned and cut at a threshold from healthy scans,
    is a pseudo-label; a U-Net learns those, with Dice and cross-entropy, beside given labels where
    there are some. The map is its probability.

    Departures:
        sizes: no code was released and the article's numbers aren't known here: all sizes, rates
            and weights are ours, and plain means in the loss.
        threshold: the mean over healthy training images of a quantile of their map's foreground,
            with a band around it that isn't learnt from: ours.
        cleaning: erosion, brightest tenth and median of the group's later study (``ae_dense``);
            slices of a volume are cleaned one by one, so the brightest tenth is of the slice.
        labels: made anew in each step; with ``labelled`` the anomalous scans of ``extra`` with a
            mask are drawn twice, with it and, among the unlabelled ones, without.
        score: the mean of the map in the foreground.

    Args:
        size: pixels along each axis, a power of two times 8.
        width: channels of the autoencoder's first convolution.
        dropout: on the autoencoder's code.
        gradient_weight: weight of the gradient difference.
        cleaning: post-processing chain of the autoencoder's map, in pixels of the grid.
        quantile: of the foreground of a healthy map, whose mean is the threshold.
        band: pixels within this share of the threshold below and above it aren't learnt from.
        threshold_steps: healthy batches that the threshold comes from.
        labelled: also learn from the masks of anomalous scans in ``extra``.
        pseudo_weight: weight of a pixel with a pseudo-label where one with a label has 1.
        segment_width: channels of the U-Net's first level.
        segment_depth: levels of the U-Net.
        segment_lr: learning rate of Adam for the U-Net.
        segment_batch_size: images in one of its updates.
        segment_epochs: its passes over the scans that it learns from.
        segment_steps: number of its updates instead of ``segment_epochs``.
    """
    restorer = BaurAutoencoder(
        dims, channels, size, Code(head="spatial"), Levels(width), dropout=dropout
    )
    segmenter = UNet(dims, channels, segment_width, segment_depth, outputs=1)
    return PseudoLabelSegmentation(
        restorer=restorer,
        segmenter=segmenter,
        training=training,
        segmenting=settings(
            lr=segment_lr,
            batch_size=segment_batch_size,
            epochs=segment_epochs,
            steps=segment_steps,
        ),
        pseudo=PseudoLabels(cleaning, quantile, threshold_steps, band, pseudo_weight),
        labelled=labelled,
        gradient_weight=gradient_weight,
    )
