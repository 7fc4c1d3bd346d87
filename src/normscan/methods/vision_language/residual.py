"""InCTRL: how unlike a few healthy images an image is, learnt once for all kinds of images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.vision_language.common import (
    PICTURE,
    TINY,
    Trained,
    abnormal,
    as_map,
    drawn,
    labelled_phase,
    labels_of,
    language,
    matched,
)
from normscan.methods.vision_language.wording import wording
from normscan.networks.tower_parts import Eye
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register


class Head(nn.Sequential):
    """Two hidden layers of 128 and 64, ReLU and then batch norm, to a probability."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Linear(width, 128), nn.ReLU(), nn.BatchNorm1d(128),
            nn.Linear(128, 64), nn.ReLU(), nn.BatchNorm1d(64),
            nn.Linear(64, 1), nn.Sigmoid(),
        )  # fmt: skip


def squashed_focal(probability: Tensor, label: Tensor) -> Tensor:
    """Binary focal loss of a probability that is taken for a logit, as the release does.

    Args:
        probability: (B,), 0 to 1.
        label: (B,), 0 or 1.
    """
    entropy = F.binary_cross_entropy_with_logits(
        probability, label.to(probability), reduction="none"
    )
    return ((1 - torch.exp(-entropy)).square() * entropy).mean()


class InCTRL(Method):
    """Residuals to healthy references; see ``inctrl``.

    Args:
        eye: the image tower.
        told: (2, joint) directions of healthy and ill.
        layers: numbers of the blocks whose patches are compared.
        patches: of an image.
        shots: references.
        training: the shared arguments.
    """

    told: Tensor
    memory: Tensor
    firsts: Tensor

    def __init__(
        self, eye: Eye, told: Tensor, layers: tuple[int, ...], patches: int, shots: int,
        training: Schedule,
    ) -> None:  # fmt: skip
        super().__init__()
        self.eye, self.layers, self.shots, self._training = eye, layers, shots, training
        joint = told.shape[1]
        self.adapter = nn.Sequential(
            nn.Linear(joint, joint // 4, bias=False), nn.ReLU(),
            nn.Linear(joint // 4, joint, bias=False), nn.ReLU(),
        )  # fmt: skip
        self.of_image, self.of_map = Head(joint), Head(patches)
        self.register_buffer("told", told)
        # Something to look at before it is fitted.
        self.register_buffer("memory", torch.ones(len(layers), 1, eye.conv1.out_channels))
        self.register_buffer("firsts", torch.zeros(1, joint))

    def phases(self) -> list[Phase]:
        learnt: list[nn.Module] = [self.adapter, self.of_image, self.of_map]
        made = phase(
            learnt, self._training, "residuals", "healthy+labelled", optimizer=torch.optim.AdamW
        )
        return [labelled_phase(made, balanced=True)]

    @torch.no_grad()
    def seen(self, image: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Patches (layers, B, h w, width) and image (B, joint)."""
        tokens, last, grid = self.eye.layers(image, self.layers)
        return torch.stack(tokens)[:, :, 1:], self.eye.joined(last[:, 0]), grid

    def judged(self, residual: Tensor, image: Tensor, firsts: Tensor) -> tuple[Tensor, Tensor]:
        """The output and what the image residual alone says, (B,) each.

        Args:
            residual: (B, h w) of patches.
            image: (B, joint).
            firsts: (B, joint) mean of the adapted references.
        """
        alone = self.of_image(firsts - self.adapter(image))
        words = abnormal(image, self.told, 0.01)[:, None]
        whole = self.of_map(words + alone + residual)[:, 0]
        return (whole + residual.amax(1)) / 2, alone[:, 0]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        patches, image, _ = self.seen(batch.image)
        label, _ = labels_of(batch)
        firsts, residuals = self.adapter(image), []
        means = []
        for i in range(len(batch)):
            others = [j for j in (label == 0).nonzero()[:, 0].tolist() if j != i] or [i]
            order = batch.rng.uniform((len(batch),)).argsort().tolist()
            chosen = [j for j in order if j in others][: self.shots]
            banks = patches[:, chosen].flatten(1, 2)
            pairs = zip(patches[:, i], banks, strict=True)
            residuals.append(torch.stack([matched(own, bank) for own, bank in pairs]).mean(0))
            means.append(firsts[chosen].mean(0))
        output, alone = self.judged(torch.stack(residuals), image, torch.stack(means))
        return {"output": squashed_focal(output, label), "image": squashed_focal(alone, label)}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep patches and images of the references."""
        patches, firsts, _ = self.seen(drawn(batches, self.shots))
        self.memory, self.firsts = patches.flatten(1, 2), firsts

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, image, grid = self.seen(batch.image)
        pairs = zip(patches, self.memory, strict=True)
        residual = torch.stack([matched(own, bank) for own, bank in pairs]).mean(0)
        firsts = self.adapter(self.firsts).mean(0).expand(len(image), -1)
        return Maps(as_map(residual, grid), self.judged(residual, image, firsts)[0])


@register(
    "inctrl",
    paper="Zhu 2024",
    regime="image-labels",
    presets={
        "code": {"shots": 2},
        "laptop": {"tower": "ViT-B-32", "size": 224, "steps": 200},
    },
    preprocess=PICTURE,
    tiny={**TINY, "layers": (2, 3), "steps": 40, "batch_size": 8, "shots": 4},
    options=language | schedule(lr=1e-3, weight_decay=0.01, batch_size=16, steps=1000),
)
def inctrl(
    dims: int = 2,
    channels: int = 1,
    shots: int = 8,
    layers: tuple[int, ...] = (7, 9, 11),
    **options: Unpack[Trained],
) -> Method:
    """In-context residual learning: what sets an image apart from a few healthy ones (InCTRL).

    Zhu and Pang, CVPR 2024, learn one detector for many kinds of images: of a frozen CLIP ViT-B/16+
    (240 pixels, LAION-400M) the patches of blocks 7, 9 and 11 are compared with those of 2, 4 or 8
    healthy images, half of one minus the cosine to the nearest; the image with their mean behind an
    adapter of two layers (640, 160, 640), by a head; and the image with sentences as in ``winclip``.
    Head and sentences are added to the map of patches, which a second head scores; the output is the
    mean of that and of the map's maximum. Loss: focal, of the output and of the image residual. AdamW
    at 1e-3, 10 times 100 batches of 8 healthy and 8 anomalous images.

    Train it on a cohort with anomalies of any kind, then ``normscan calibrate`` on healthy scans.

    Departures:
        pairing: each image is compared with healthy images of its own batch. The release stacks
            queries and their references in different orders, so that in batches most residuals are
            between images that don't belong together; for one image, as in its test, both agree.
        references: at prediction those of the training cohort, drawn by the seed; its test takes
            stored ones of each data set.
        shots: 8 of the article; the release's default is 2: ``code``.
        weights: LAION-400M after epoch 31; the release's after 32 (``ViT-B-16-plus-240-e32``).
        map: that of the patches, as it is; the release has no map.
        resizing: the picture stretched to a square; there the shorter side and the middle.

    Args:
        shots: healthy references.
        layers: numbers of the blocks, from 1, whose patches are compared.
    """
    tower = Tower(options["tower"], options["weights"])
    check_layers(options["tower"], layers, tower.shape.layers, "layers")
    told = tower.told(wording(options["prompts"], options["table"], False).ensembles("photo"))
    patches = (options["size"] // tower.shape.patch) ** 2
    return InCTRL(tower.eye, told, layers, patches, shots, options)
