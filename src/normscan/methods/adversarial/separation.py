"""Small lesions as what separates an image from its healthy form, confirmed by a classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.backbones import import_timm
from normscan.networks.vnet import SeparatingVNet
from normscan.registry import register

Counted = Literal["images", "pixels"]


def widened(mask: Tensor, radius: int) -> Tensor:
    """Dilate masks (B, 1, H, W) bool by a disc."""
    reach = torch.arange(-radius, radius + 1, device=mask.device)
    disc = (reach[:, None] ** 2 + reach**2 <= radius**2).float()
    return F.conv2d(mask.float(), disc[None, None], padding=radius) > 0.5


def variance(values: Tensor) -> Tensor:
    """Sample variance, 0 of fewer than two values."""
    return values.var() if len(values) > 1 else values.new_zeros(())


def t_test_loss(
    residual: Tensor, lesion: Tensor, counted: Counted, gap: float = 0.8,
    weights: tuple[float, float] = (1.0, 0.1),
) -> dict[str, Tensor]:  # fmt: skip
    """Residuals small in healthy images and at least ``gap`` in lesions, both alike (Zhang et al. 2019).

    Args:
        residual: (B, 1, H, W).
        lesion: (B, 1, H, W) bool, dilated; images without any are healthy.
        counted: means of ``images``, those of lesions in them and of healthy images as a whole, with
            the first weight for the variance of lesions and the second one for that of healthy
            images; or ``pixels`` of the whole batch, where the weights are the other way round.
        gap: that residuals of lesions have on average.
        weights: of the variances.
    """
    if counted == "pixels":
        high, low = residual[lesion], residual[~lesion]
        weights = (weights[1], weights[0])
    else:
        sick = lesion.flatten(1).any(1)
        inside = lesion[sick].flatten(1)
        high = (residual[sick].flatten(1) * inside).sum(1) / inside.sum(1)
        low = residual[~sick].flatten(1).mean(1)
    terms: dict[str, Tensor] = {}
    if len(high):
        terms["lesions"] = F.relu(gap - high.mean())
        terms["spread of lesions"] = weights[0] * variance(high)
    if len(low):
        terms["healthy"] = low.mean()
        terms["spread of healthy"] = weights[1] * variance(low)
    return terms


@dataclass(frozen=True)
class Candidates:
    """How candidates are found and seen: threshold, least area, cut and seen pixels a side."""

    threshold: float
    area: float
    side: int
    seen: int

    def found(self, residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Components (H, W), numbered from 1, and their centres (N, 2)."""
        from scipy.ndimage import center_of_mass, label

        numbered, count = label(residual > self.threshold, np.ones((3, 3)))
        sizes = np.bincount(numbered.ravel(), minlength=count + 1)
        kept = np.flatnonzero(sizes >= self.area)
        kept = kept[kept > 0]
        renumbered = np.zeros(count + 1, int)
        renumbered[kept] = np.arange(1, len(kept) + 1)
        centres = center_of_mass(numbered > 0, numbered, kept) if len(kept) else []
        return renumbered[numbered], np.array(centres).reshape(-1, 2)

    def cut(self, image: Tensor, centre: np.ndarray) -> Tensor:
        """The square (1, C, seen, seen) around a centre, moved into the image (C, H, W)."""
        side = min(self.side, *image.shape[1:])
        y, x = (
            int(np.clip(round(float(c)) - side // 2, 0, n - side))
            for c, n in zip(centre, image.shape[1:], strict=True)
        )
        square = image[None, :, y : y + side, x : x + side]
        return F.interpolate(square, (self.seen,) * 2, mode="bilinear", align_corners=False)


class Separated(Method):
    """A network that separates anomalies, and a classifier of candidates; see ``asn_microcalc``.

    Args:
        separator: image to the image without anomalies.
        classifier: squares around candidates to two logits, the second one of lesions.
        candidates: how they are found.
        radius: by which lesions are dilated in training.
        counted: see ``t_test_loss``.
        phases: of both.
    """

    def __init__(
        self, separator: nn.Module, classifier: nn.Module, candidates: Candidates, radius: int,
        counted: Counted, phases: tuple[Phase, Phase],
    ) -> None:  # fmt: skip
        super().__init__()
        self.separator, self.classifier = separator, classifier
        self.candidates, self.radius, self.counted = candidates, radius, counted
        self._phases = list(phases)

    def phases(self) -> list[Phase]:
        return self._phases

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.lesion is not None
        x, lesion = batch.image, batch.lesion
        for axis in (-1, -2):
            turned = batch.rng.uniform((len(x), 1, 1, 1)).to(x) < 0.5
            x = torch.where(turned, x.flip(axis), x)
            lesion = torch.where(turned, lesion.flip(axis), lesion)
        if phase == "separate":
            residual = absolute(x, self.separator(x))
            return t_test_loss(residual, widened(lesion, self.radius), self.counted)
        squares, labels = self._examples(x, lesion, batch)
        return {"cross entropy": F.cross_entropy(self.classifier(squares), labels)}

    def _examples(self, x: Tensor, lesion: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """A square of each image: around a lesion, else around a candidate or anywhere."""
        with torch.no_grad():
            residual = absolute(x, self.separator(x))[:, 0].cpu().numpy()
        masks, chance = lesion[:, 0].cpu().numpy(), batch.rng.uniform((len(x), 3)).tolist()
        squares, labels = [], []
        for i, (which, *anywhere) in enumerate(chance):
            sick = bool(masks[i].any())
            seen = np.where(masks[i], np.inf, 0.0) if sick else residual[i]
            finder = Candidates(self.candidates.threshold, 1, 0, 0) if sick else self.candidates
            _, centres = finder.found(seen)
            place = np.array(anywhere) * masks[i].shape
            centre = centres[int(which * len(centres))] if len(centres) else place
            squares.append(self.candidates.cut(x[i], centre))
            labels.append(int(sick))
        return torch.cat(squares), torch.tensor(labels, device=x.device)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = batch.image
        separated = self.separator(x)
        residual = absolute(x, separated)
        shown, scores = torch.zeros_like(residual), []
        for i, values in enumerate(residual[:, 0].cpu().numpy()):
            numbered, centres = self.candidates.found(values)
            chances = np.zeros(len(centres) + 1)
            for k, centre in enumerate(centres, 1):
                logits = self.classifier(self.candidates.cut(x[i], centre))
                chances[k] = float(logits.softmax(1)[0, 1])
            shown[i, 0] = residual[i, 0] * torch.from_numpy(chances[numbered]).to(x)
            scores.append(float(chances.max()))
        return Maps(shown, torch.tensor(scores), separated)


@register(
    "asn_microcalc",
    paper="Zhang 2019",
    regime="few-anomalies",
    dims=(2,),
    presets={
        "code": {"counted": "pixels"},
        "laptop": {
            "size": 112, "width": 8, "seen": 64, "side": 32, "batch_size": 8, "steps": 300,
            "classify_steps": 100,
        },
    },
    preprocess={"scaling": "minmax", "limit": 1.0},
    tiny={
        "size": 32, "width": 6, "radius": 1, "area": 4.0, "side": 12, "seen": 16,
        "classifier": "test_resnet", "batch_size": 8, "steps": 120, "classify_steps": 20, "lr": 1e-2,
    },
)  # fmt: skip
def asn_microcalc(
    dims: int = 2,
    channels: int = 1,
    size: int = 112,
    width: int = 16,
    radius: int = 7,
    counted: Counted = "images",
    threshold: float = 0.1,
    area: float = 30.8,
    side: int = 56,
    seen: int = 224,
    classifier: str = "resnet18",
    lr: float = 1e-3,
    batch_size: int = 24,
    steps: int = 20_000,
    classify_steps: int = 5_000,
) -> Method:
    """Lesions of a few pixels by a network that separates them, and a classifier of candidates (ASN).

    Zhang et al., CVPR 2019, for microcalcifications in mammograms, cut into patches of 112 pixels
    (``--patch``): a small V-Net gives the image without anomalies. Its loss is that of a t-test:
    residuals of healthy images are small and those of lesions, dilated by 7 pixels, at least 0.8 on
    average, and either vary little. Components of the residual above 0.1 with at least 30.8 pixels
    are candidates, which a ResNet-18 sees as squares of 56 pixels enlarged to 224. Adam 1e-3 (times
    0.95 every twentieth of the training), batches of 24, as many patches with lesions as without,
    mirrored along both axes at random. Values must lie in 0..1, and some scans need lesion masks.

    The authors released nothing; what a re-implementation says they did is compared. Its loss takes
    the means of images; ``code`` is its later default, with pixels of the whole batch and the
    weights of the variances (1 for lesions, 0.1 for healthy tissue) the other way round, where its
    configuration weighs pixels by their uncertainty as well. Map and score are ours: the residual
    in candidates times their probability, and the highest probability; the article's figures count
    candidates near a lesion.

    Departures:
        examples: one square of each patch, around a lesion if there is any, else around a candidate;
            the re-implementation stores all candidates first.
        steps: ours; 1001 passes over patches in the re-implementation.

    Args:
        dims: spatial axes, 2.
        size: pixels along each axis of a patch.
        width: channels of the V-Net's first level, an even number.
        radius: pixels by which lesions are dilated in training.
        counted: means of ``images`` or of ``pixels`` in the loss.
        threshold: of the residual, above which pixels are candidates.
        area: least pixels of a candidate.
        side: pixels of the square around a candidate.
        seen: pixels that it is enlarged to.
        classifier: timm name of a network that learns from nothing.
        lr: learning rate of Adam, for both networks.
        batch_size: patches in an update.
        steps: updates of the V-Net.
        classify_steps: updates of the classifier.
    """
    separator = SeparatingVNet(channels, width)
    network: nn.Module = import_timm().create_model(
        classifier, pretrained=False, in_chans=channels, num_classes=2
    )

    def phase(name: str, trained: nn.Module, length: int) -> Phase:
        falling = lambda step, steps: 0.95 ** (20 * step // max(1, steps))  # noqa: E731
        player = Player("network", [trained], adam(lr), schedule=falling)
        return Phase(
            name, [player], length, batch_size=batch_size, part="healthy+anomalous", balanced=True
        )

    return Separated(
        separator, network, Candidates(threshold, area, side, seen), radius, counted,
        (phase("separate", separator, steps), phase("classify", network, classify_steps)),
    )  # fmt: skip
