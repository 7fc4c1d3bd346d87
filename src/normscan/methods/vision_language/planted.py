"""MediCLIP: learnt words and linear layers that tell planted anomalies from a few healthy images."""

from __future__ import annotations

from dataclasses import dataclass
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
    enlarged,
    labelled_phase,
    language,
    segmented,
    two_maps,
)
from normscan.methods.vision_language.learnt import LearntWords
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis import blends, donors, labels, placement, shapes
from normscan.synthesis.blur import gaussian_blur, smooth
from normscan.synthesis.corruption import Corrupted, Corruption, Mixture
from normscan.synthesis.draws import between, signs, spread_out
from normscan.synthesis.perlin import perlin_masks

HEALTHY = (
    "normal", "healthy", "negative", "unremarkable", "clear", "asymptomatic", "normal findings",
    "no findings", "in good health", "no evidence of disease",
)  # fmt: skip
ILL = (
    "abnormal", "positive", "symptomatic", "disease", "lesion", "pathological", "impaired",
    "evidence of disease", "abnormal finding", "pathological condition",
    "pathological abnormality",
)  # fmt: skip


@dataclass(frozen=True)
class Window:
    """Areas that are drawn in a window, whatever its size.

    Attributes:
        half: (n, 2) half of the window's sides, in pixels.
        area: (n, h, w) 1 inside, else 0; stretched into the window.
    """

    half: Tensor
    area: Tensor

    @property
    def extent(self) -> Tensor:
        return self.half

    def inside(self, offsets: Tensor) -> Tensor:
        at = offsets / spread_out(self.half.to(offsets), 2)
        # grid_sample takes columns before rows.
        found = F.grid_sample(
            self.area[:, None].to(at), at.flip(1).movedim(1, 3), mode="nearest",
            align_corners=False,
        )  # fmt: skip
        return found[:, 0] > 0.5


def perlin_windows(sides: tuple[float, float], threshold: float = 0.3) -> shapes.Shape:
    """Where Perlin noise of one cell in a window exceeds a threshold.

    Args:
        sides: least and largest side of the window, shares of the image's.
        threshold: of the noise.
    """

    def draw(n: int, spatial: tuple[int, ...], rng: Rng) -> shapes.Outline:
        everywhere = torch.ones(n, 1, *spatial, dtype=torch.bool)
        area = perlin_masks(everywhere, rng, threshold, 1)[:, 0].float()
        share = between(rng, (n, 2), *sides)
        return Window(share * torch.tensor(spatial) / 2, area)

    return draw


def blotched(amount: tuple[float, float] = (0.4, 0.6)) -> blends.Blend:
    """Brighter or darker by smoothed binary noise, faded out at the edge (GaussIntensityChange).

    The noise is smoothed by a Gaussian of 4 or 7 pixels and brought to 0..1, the mask by one of 1 to 4.

    Args:
        amount: least and largest change, of a range of intensities from 0 to 1.
    """

    def blend(scene: placement.Scene, s: Tensor) -> tuple[Tensor, Tensor]:
        n, rng = len(s), scene.rng
        noise = (rng.normal((n, 1, *scene.spatial)) >= 0).to(s)
        fine = rng.uniform((n, 1)) < 0.5
        noise = torch.where(spread_out(fine, 2).to(s.device), smooth(noise, 4), smooth(noise, 7))
        low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
        noise = (noise - low) / (high - low).clamp_min(1e-6)
        size = spread_out(between(rng, (n, 1), *amount) * signs(rng, (n, 1)), 2).to(s)
        sigma = between(rng, (n, 1), 1, 4)[:, 0]
        window = tuple(min(33, 2 * side - 1) for side in scene.spatial)
        soft = gaussian_blur(scene.mask.to(s), sigma, window)
        changed = (scene.x + size * noise * soft).clamp(0, 1)
        return changed, torch.ones(n, 1, 1, 1).to(s)

    return blend


def _unchanged(x: Tensor, donor: Tensor, rng: Rng, object_mask: Tensor) -> Corrupted:
    nothing = torch.zeros_like(object_mask)
    return Corrupted(x, nothing.to(x), nothing)


def four_tasks() -> Mixture:
    """Cut and paste, blotches, tissue pushed out, or nothing, with equal probability."""
    # The deviation of 0.2 grey levels makes every change a whole anomaly.
    label = labels.flipped_gaussian(0.2 / 255)
    pasted = Corruption(
        perlin_windows((0.1, 0.6)),
        placement.inside_frame,
        donors.resampled(),
        blends.paste,
        label,
        2,
    )
    spotted = Corruption(
        perlin_windows((0.3, 0.8)), placement.inside_frame, donors.host, blotched(), label, 2
    )
    pushed = Corruption(
        shapes.hypershapes(bounds=(0.2, 0.6)), placement.inside_frame, donors.host,
        blends.radial("push"), label, 2,
    )  # fmt: skip
    return Mixture((pasted, spotted, pushed, _unchanged))


class MediCLIP(Method):
    """Learnt words and layers; see ``mediclip``.

    Args:
        tower: both towers, frozen.
        layers: numbers of the blocks whose patches are compared.
        words: learnt ones in front of each phrase.
        causal: a token of a phrase sees itself and those before it alone.
        training: the shared arguments.
    """

    def __init__(
        self, tower: Tower, layers: tuple[int, ...], words: int, causal: bool, training: Schedule
    ) -> None:
        super().__init__()
        self.tower, self.layers, self._training = tower, layers, training
        phrases = [f"{phrase}." for phrase in (*HEALTHY, *ILL)]
        self.words = LearntWords(tower, phrases, words, causal=causal)
        shape = tower.shape
        self.adapters = nn.ModuleList(nn.Conv2d(shape.width, shape.joint, 1) for _ in layers)
        self.plant = four_tasks()

    def phases(self) -> list[Phase]:
        return [labelled_phase(phase([self.words, self.adapters], self._training, "planted"))]

    def told(self) -> Tensor:
        """Directions (2, joint) of healthy and ill: means of their phrases as they are."""
        phrases = self.words(self.tower.tongue)
        means = [phrases[: len(HEALTHY)].mean(0), phrases[len(HEALTHY) :].mean(0)]
        return F.normalize(torch.stack(means), dim=1)

    def likely(self, image: Tensor) -> Tensor:
        """Probability of ill of each pixel, (B, H, W)."""
        with torch.no_grad():
            tokens, _, grid = self.tower.eye.layers(image, self.layers)
        told, maps = self.told(), []
        for adapter, patches in zip(self.adapters, tokens, strict=True):
            features = adapter(patches[:, 1:].mT.unflatten(2, grid)).flatten(2).mT
            maps.append(two_maps(features, told, 1.0, grid))
        logits = enlarged(torch.stack(maps).mean(0), image.shape[2:])
        return logits.softmax(1)[:, 1]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        donor = batch.image.roll(1, 0)
        made = self.plant(batch.image.clamp(0, 1), donor, batch.rng, batch.foreground)
        return {"map": segmented(self.likely(made.image), made.label > 0.9999)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found = self.likely(batch.image)[:, None]
        return Maps(found, found.amax((1, 2, 3)))


@register(
    "mediclip",
    paper="Zhang 2024",
    regime="few-shot",
    presets={
        "code": {"causal": False},
        "laptop": {"tower": "ViT-B-16", "layers": (6, 9, 12), "steps": 100},
    },
    preprocess=PICTURE,
    tiny={**TINY, "layers": (2, 4), "shots": 16, "steps": 60, "batch_size": 8, "lr": 1e-2},
    options=language(size=224, tower="ViT-L-14")
    | schedule(lr=1e-3, beta1=0.5, batch_size=8, epochs=200),
)
def mediclip(
    dims: int = 2,
    channels: int = 1,
    shots: int = 16,
    layers: tuple[int, ...] = (12, 18, 24),
    words: int = 8,
    causal: bool = True,
    **options: Unpack[Trained],
) -> Method:
    """Words and linear layers of CLIP that learn anomalies planted into a few healthy images (MediCLIP).

    Zhang et al., MICCAI 2024: of a frozen CLIP ViT-L/14 (224 pixels) the patches of blocks 12, 18 and
    24 go through a convolution of one pixel each, 1024 to 768, and are compared with 10 phrases about
    health and 11 about disease, each with 8 learnt words in front; the softmax of the mean cosine, with
    no temperature. In each image of a few healthy ones (16) nothing is changed, or a piece is pasted,
    tissue becomes blotched or is pushed out, in one or two places. Loss: focal and Dice of the map.
    Adam (0.5, 0.999) at 1e-3, batches of 8, 200 epochs. Score: the map's maximum.

    Departures:
        epochs: the last one; the release keeps the one that is best on the test set.
        attention: the text tower's, causal as CLIP learnt it; the release leaves its mask out: ``code``.
        label: every change by more than half a grey level, enclosed places filled. The release's focal
            loss leaves out changes by a single one, and its differences of whole numbers wrap around.
        windows: of Perlin noise: those without anything above 0.3 change nothing; there they are drawn
            again. The noise is stretched into them; there it is made for them.
        push: tissue moves by 0.1 to 0.9 of what the shape allows, as in ``many_tasks``; there by an
            exponent from 1.4 to 4.
        donor: the next image of the batch; any of the references there.
        grey: images keep their channels; the release makes them grey in training alone.

    Args:
        prompts: not used: the phrases are the article's.
        table: not used.
        shots: healthy references.
        layers: numbers of the blocks, from 1, whose patches are compared.
        words: learnt in front of each phrase.
        causal: a token of a phrase sees itself and those before it alone.
    """
    tower = Tower(options["tower"], options["weights"])
    check_layers(options["tower"], layers, tower.shape.layers, "layers")
    return MediCLIP(tower, layers, words, causal, options)
