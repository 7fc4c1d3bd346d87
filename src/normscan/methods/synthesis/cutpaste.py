"""Two stages: tell healthy images from cut-and-pasted ones, then ask how usual their features are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict, Unpack, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.synthesis.nsa import cosine
from normscan.networks.resnet import ResNetEncoder
from normscan.registry import register
from normscan.scores.shrunken import ShrunkenGaussian
from normscan.signatures import Options
from normscan.synthesis import tasks
from normscan.synthesis.corruption import Corrupt
from normscan.synthesis.draws import between, spread_out

Variant = Literal["normal", "scar", "3way"]
Anatomy = Callable[[Batch], Tensor]


def lung_masks(batch: Batch, smallest: int = 400) -> Tensor:
    """Anatomy by intensity alone, as AnatPaste finds lungs, (B, 1, H, W) bool.

    Contrast-limited equalisation, Otsu's threshold, opening, what touches no border, dilation;
    components smaller than ``smallest`` pixels of 256 x 256 are dropped. Where nothing is left, all.
    """
    from skimage import exposure, filters, measure, segmentation
    from skimage.morphology import dilation, opening

    square = np.ones((3, 3), bool)
    found = []
    for image in batch.image.mean(1).clamp(0, 1).cpu().numpy():
        if image.min() == image.max():
            found.append(np.ones(image.shape, bool))
            continue
        even = exposure.equalize_adapthist(image, clip_limit=0.01, nbins=256)
        bright = opening(even > filters.threshold_otsu(even), square)
        inner = dilation(segmentation.clear_border(bright), square)
        parts = measure.label(inner)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0
        kept = (sizes >= smallest * image.size / 256**2)[parts]
        found.append(kept if kept.any() else np.ones(image.shape, bool))
    return torch.from_numpy(np.stack(found))[:, None].to(batch.image.device)


def _whole(batch: Batch) -> Tensor:
    return torch.ones_like(batch.foreground)


@dataclass(frozen=True)
class Updates:
    """SGD with momentum on a cosine.

    Attributes:
        lr: at the start.
        weight_decay: of all weights.
        batch_size: source images in an update.
        steps: updates.
    """

    lr: float
    weight_decay: float
    batch_size: int
    steps: int


class TwoStage(Method):
    """A classifier of planted anomalies whose pooled features get a Gaussian.

    Args:
        encoder: images to feature maps, with ``width`` channels.
        kinds: what is planted; each is a class beside the healthy one.
        anatomy: where it is planted.
        head: widths of the layers between the features and the classes.
        updates: of the classifier.
        jitter: brightness and contrast of source images change by up to so much.
    """

    def __init__(
        self, encoder: ResNetEncoder, kinds: list[Corrupt], anatomy: Anatomy, head: list[int],
        updates: Updates, jitter: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder = encoder
        layers: list[nn.Module] = []
        widths = [encoder.width, *head]
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], len(kinds) + 1))
        self.gaussian = ShrunkenGaussian(encoder.width)
        self._kinds, self._anatomy, self._updates, self._jitter = kinds, anatomy, updates, jitter

    def phases(self) -> list[Phase]:
        lr, decay = self._updates.lr, self._updates.weight_decay
        player = Player(
            "classifier",
            [self.encoder, self.head],
            lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=decay),
            schedule=cosine(0.0),
        )
        return [
            Phase("classify", [player], self._updates.steps, batch_size=self._updates.batch_size)
        ]

    def features(self, image: Tensor) -> Tensor:
        """Pooled features (B, width) of images in 0..1."""
        pooled: Tensor = self.encoder(2 * image - 1).mean((2, 3))
        return pooled

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        objects = self._anatomy(batch)
        made = [k(batch.image, batch.image, batch.rng, objects).image for k in self._kinds]
        images = torch.cat([self._jittered(x, batch) for x in (batch.image, *made)])
        n = len(batch)
        classes = torch.arange(len(made) + 1, device=images.device).repeat_interleave(n)
        return {"entropy": F.cross_entropy(self.head(self.features(images)), classes)}

    def _jittered(self, image: Tensor, batch: Batch) -> Tensor:
        n, j = len(image), self._jitter
        bright, contrast = (
            spread_out(between(batch.rng, (n, 1), 1 - j, 1 + j), 2).to(image) for _ in range(2)
        )
        image = bright * image
        mean = image.mean((1, 2, 3), keepdim=True)
        return (mean + contrast * (image - mean)).clamp(0, 1)

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        self.gaussian.fit(F.normalize(self.features(batch.image)) for batch in batches)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        return Maps(score=self.gaussian(F.normalize(self.features(batch.image))))


class TwoStaged(TypedDict):
    """The arguments of ``two_staged``, for ``**options: Unpack[TwoStaged]`` in a signature."""

    width: int
    pool: bool
    head: tuple[int, ...]
    lr: float
    weight_decay: float
    batch_size: int
    steps: int


two_staged = Options(
    get_type_hints(TwoStaged),
    {
        "width": 64,
        "pool": True,
        "head": (512, 128),
        "lr": 0.03,
        "weight_decay": 3e-5,
        "batch_size": 32,
        "steps": 65_536,
    },
    {
        "width": "channels of the first convolution.",
        "pool": "halve the grid behind it, as ResNet does; off for small images.",
        "head": "widths of the layers before the classes.",
        "lr": "learning rate at the start.",
        "weight_decay": "of all weights.",
        "batch_size": "source images in an update; each gives one of every class.",
        "steps": "updates.",
    },
)


def _two_stage(
    channels: int, kinds: Sequence[Corrupt], anatomy: Anatomy, options: TwoStaged
) -> Method:
    updates = Updates(
        options["lr"], options["weight_decay"], options["batch_size"], options["steps"]
    )
    encoder = ResNetEncoder(channels, options["width"], options["pool"])
    return TwoStage(encoder, list(kinds), anatomy, list(options["head"]), updates)


_PICTURE = {"scaling": "minmax", "crop": "none"}
_LAPTOP = {"size": 64, "width": 16, "pool": False, "steps": 400, "batch_size": 16}
_TINY = {
    "size": 32, "width": 8, "pool": False, "head": (32, 16), "steps": 100, "batch_size": 12,
}  # fmt: skip


@register(
    "cutpaste",
    paper="Li 2021",
    presets={"code": {"steps": 256, "batch_size": 64}, "laptop": _LAPTOP},
    preprocess=_PICTURE,
    tiny=_TINY,
    options=two_staged,
)
def cutpaste(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    variant: Variant = "3way",
    **options: Unpack[TwoStaged],
) -> Method:
    """CutPaste: a classifier of cut-and-pasted images whose features of healthy ones get a Gaussian.

    Li et al., CVPR 2021 (arXiv 2104.04015): a rectangle of 2 to 15 % of the image's area and an
    aspect ratio of 0.3 to 3.3 is copied to another place of the same image with jittered colours
    (``normal``); or a thin turned strip (``scar``); ``3way`` tells both and healthy apart. A ResNet-18
    from scratch with a small head learns it by cross-entropy: SGD 0.03 with momentum, decay 3e-5, one
    cosine, 256 times 256 updates of 96 images (32 sources). Pooled features, brought to length 1, of
    healthy images get a Gaussian with Ledoit and Wolf's covariance; the score is half the squared
    Mahalanobis distance, and there is no map. There is no official code; ``code`` counts updates as
    the port Runinho/pytorch-cutpaste does, 256 in all. Images from 0 to 1.

    Departures:
        covariance: shrunken also in ``code``, whose score is the distance's root.
        places: of the strip inside the image on both axes; the port exchanges them.
        jitter: of brightness and contrast; hue and saturation, which grey images lack, stay.
        localisation: the article's second network on patches isn't here.

    Args:
        variant: what is told from healthy images: ``normal``, ``scar``, or both (``3way``).
    """
    made: dict[Variant, list[Corrupt]] = {
        "normal": [tasks.cutpaste()],
        "scar": [tasks.scar()],
        "3way": [tasks.cutpaste(), tasks.scar()],
    }
    return _two_stage(channels, made[variant], _whole, options)


@register(
    "anatpaste",
    paper="Sato 2023",
    presets={"laptop": _LAPTOP},
    preprocess=_PICTURE,
    tiny={**_TINY, "anatomy": "foreground"},
    options=two_staged,
)
def anatpaste(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    anatomy: Literal["lungs", "foreground"] = "lungs",
    **options: Unpack[TwoStaged],
) -> Method:
    """AnatPaste: CutPaste on the anatomy alone, with translucent soft patches.

    Sato et al., iScience 2023 (arXiv 2205.04282), for chest radiographs: a patch of 2 to 15 % of the
    area is copied to a random pixel of the lungs, as a rectangle or an ellipse that is smaller by 10
    of 256 pixels on each side, with an opacity of 150 to 254 of 255 and edges blurred by up to 14
    pixels, and shows only on the lungs. These are found by equalisation, Otsu's threshold and
    morphology. Network, training and score are those of ``cutpaste`` with two classes. Images from 0
    to 1.

    Departures:
        small patches: the opaque part has a pixel at least; in the release a patch that is thinner
            than 20 pixels is drawn inside out.
        small components: only they are dropped; the release empties their whole bounding boxes.
        without lungs: the patch may go anywhere, as in the release, which draws from 255 pixels.
        kept weights: the last; the release keeps the best on labelled scans.
        jitter: as in ``cutpaste``.

    Args:
        anatomy: ``lungs`` as in the article, or the detector's ``foreground``.
    """
    where = lung_masks if anatomy == "lungs" else (lambda batch: batch.foreground)
    return _two_stage(channels, [tasks.anatpaste()], where, options)
