"""SimCLIP: two simple sentences that learn a little, and linear layers of patches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    drawn,
    enlarged,
    labelled_phase,
    labels_of,
    language,
    segmented,
    two_maps,
)
from normscan.methods.vision_language.wording import wording
from normscan.networks.tower_parts import ended
from normscan.networks.towers import Tower, check_layers
from normscan.registry import register


class AddedWords(nn.Module):
    """What joins the end of a sentence: a mixture of all its states and of a learnt one (IPT).

    Args:
        context: tokens of a sentence.
        width: of the text tower.
    """

    def __init__(self, context: int, width: int) -> None:
        super().__init__()
        self.places, self.mixture = nn.Linear(context, 1), nn.Linear(2, 1)
        self.learnt = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, 8)))
        self.up = nn.Sequential(nn.Linear(8, 256), nn.GELU(), nn.Linear(256, width))
        for layer in (self.places, self.mixture):
            nn.init.uniform_(layer.weight)
            nn.init.uniform_(layer.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(N, context, width) to (N, width)."""
        said = self.places(states.mT)
        learnt = self.up(self.learnt).mT.expand(len(states), -1, -1)
        result: Tensor = self.mixture(torch.cat([said, learnt], 2))[..., 0]
        return result


class Projections(nn.Module):
    """Both towers' last projections, which learn on."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.image = nn.Parameter(tower.eye.proj.detach().clone())
        self.text = nn.Parameter(tower.tongue.text_projection.detach().clone())


class SimCLIP(Method):
    """Two sentences that learn a little, and four linear layers; see ``simclip``.

    Args:
        tower: both towers, frozen but for copies of their projections.
        sentences: about a healthy and an ill object.
        layers: numbers of the blocks whose patches are compared.
        training: the shared arguments.
    """

    ids: Tensor

    def __init__(
        self, tower: Tower, sentences: tuple[str, str], layers: tuple[int, ...], training: Schedule
    ) -> None:
        super().__init__()
        self.tower, self.layers, self._training = tower, layers, training
        shape = tower.shape
        self.register_buffer("ids", tower.ids(sentences))
        self.added = AddedWords(self.ids.shape[1], shape.text_width)
        self.projections = Projections(tower)
        self.adapters = nn.ModuleList(nn.Linear(shape.width, shape.joint) for _ in layers)

    def phases(self) -> list[Phase]:
        learnt: list[nn.Module] = [self.added, self.projections, self.adapters]
        made = phase(learnt, self._training, "adapters", "healthy+anomalous", rhythm=slow_cosine)
        return [labelled_phase(made)]

    def told(self) -> tuple[Tensor, Tensor]:
        """Directions (2, joint) for the image and for patches."""
        states = self.tower.tongue.states(self.ids)
        ends = ended(states, self.ids)
        text = self.projections.text
        return (
            F.normalize(ends @ text, dim=1),
            F.normalize((ends + self.added(states)) @ text, dim=1),
        )

    def compared(self, image: Tensor) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Logits of each layer's patches (B, 2, h, w), of the image (B, 2), and the patches."""
        eye = self.tower.eye
        of_image, of_patches = self.told()
        with torch.no_grad():
            tokens, last, grid = eye.layers(image, self.layers)
        patches = [t[:, 1:] for t in tokens]
        pairs = zip(self.adapters, patches, strict=True)
        maps = [two_maps(adapter(p), of_patches, 0.01, grid) for adapter, p in pairs]
        whole = F.normalize(eye.ln_post(last[:, 0]) @ self.projections.image, dim=1)
        return maps, 100 * whole @ of_image.T, patches

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        label, lesion = labels_of(batch)
        maps, logits, _ = self.compared(batch.image)
        likely = [enlarged(m, lesion.shape[2:]).softmax(1)[:, 1] for m in maps]
        return {
            "image": 1.3 * F.cross_entropy(logits, label),
            "maps": 0.08 * torch.stack([segmented(m, lesion) for m in likely]).sum(),
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        maps, logits, _ = self.compared(batch.image)
        likely = [enlarged(m, batch.image.shape[2:]).softmax(1)[:, 1:] for m in maps]
        return Maps(torch.stack(likely).sum(0), logits.softmax(1)[:, 1])


class SimCLIPPlus(SimCLIP):
    """SimCLIP with a memory; see ``simclip_plus``."""

    memory: Tensor

    def __init__(
        self, tower: Tower, sentences: tuple[str, str], layers: tuple[int, ...],
        training: Schedule, shots: int,
    ) -> None:  # fmt: skip
        super().__init__(tower, sentences, layers, training)
        self.shots = shots
        # Something to look at before it is fitted.
        width = self.tower.shape.width
        self.register_buffer("memory", torch.ones(len(self.layers), 1, width))

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep the patches of the references."""
        patches = self.compared(drawn(batches, self.shots))[2]
        self.memory = torch.stack(patches).flatten(1, 2).detach()

    def _nearest(self, patches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Of each layer the cosine to the nearest of the memory, (B, h w), and that one."""
        for own, bank in zip(patches, self.memory, strict=True):
            cosines = F.normalize(own, dim=2) @ F.normalize(bank, dim=1).T
            best, which = cosines.max(2)
            yield best, bank[which]

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        maps, logits, patches = self.compared(batch.image)
        size, grid = batch.image.shape[2:], maps[0].shape[2:]
        of_patches = self.told()[1]
        likely = torch.stack([m.softmax(1)[:, 1:] for m in maps]).sum(0)
        far, same = torch.zeros_like(enlarged(likely, size)), torch.zeros_like(likely)
        for adapter, (cosine, nearest) in zip(self.adapters, self._nearest(patches), strict=True):
            far = far + enlarged(((1 - cosine) / 2).unflatten(1, (1, *grid)), size)
            logit = two_maps(adapter(nearest), of_patches, 0.01, (grid[0], grid[1]))
            same = same + logit.softmax(1)[:, 1:]
        # The release weighs by the last layer's cosine alone.
        weight = ((1 + cosine) / 2).unflatten(1, (1, *grid))
        revised = (likely - same * weight).clamp(0, len(maps))
        found = enlarged(revised, size) + far
        plain = enlarged(likely, size) + far
        score = (logits.softmax(1)[:, 1] + plain.amax((1, 2, 3)) / len(maps)) / 2
        return Maps(found, score)


def slow_cosine(step: int, steps: int) -> float:
    """A cosine that would reach 0 a fifth later than the training ends."""
    return (1 + float(torch.cos(torch.tensor(torch.pi * step / (1.2 * steps))))) / 2


_LAPTOP = {
    "tower": "ViT-B-16", "size": 224, "layers": (3, 6, 9, 12), "steps": 200, "batch_size": 4,
    "postprocess": ("smooth=3",),
}  # fmt: skip
_TINY = {
    **TINY, "layers": (2, 4), "steps": 60, "batch_size": 8, "lr": 5e-3, "postprocess": ("smooth=1",),
}  # fmt: skip
_SIMPLE = language(size=518, tower="ViT-L-14-336") | schedule(
    lr=1e-3, beta1=0.5, batch_size=16, epochs=20
)


def _simple(options: Trained, layers: tuple[int, ...]) -> tuple[Tower, tuple[str, str]]:
    tower = Tower(options["tower"], options["weights"])
    check_layers(options["tower"], layers, tower.shape.layers, "layers")
    name = wording(options["prompts"], options["table"], False).object
    said = f"a photo of a {name}"
    return tower, (f"{said} without defect.", f"{said} with defect.")


@register(
    "simclip",
    paper="Deng 2024",
    regime="few-anomalies",
    presets={"laptop": _LAPTOP},
    preprocess=PICTURE,
    postprocess=("smooth=7",),
    tiny=_TINY,
    options=_SIMPLE,
)
def simclip(
    dims: int = 2,
    channels: int = 1,
    layers: tuple[int, ...] = (6, 12, 18, 24),
    **options: Unpack[Trained],
) -> Method:
    """Two simple sentences that learn a little, and four linear layers of CLIP's patches (SimCLIP).

    Deng et al., ACM Multimedia 2024, learn on images with anomalies of any kind: "a photo of a ...
    without defect." and "with defect.", to whose end in the text tower a mixture of all its states and
    of a learnt one is added (implicit prompts, for patches alone); a linear layer 1024 to 768 for the
    patches of blocks 6, 12, 18 and 24 of a CLIP ViT-L/14 at 518 pixels; and both towers' last
    projections. Softmax of 100 times the cosine. Loss: 1.3 times the cross-entropy of the image + 0.08
    times focal and Dice of the four maps. Adam (0.5, 0.999) at 1e-3, cosine, batches of 16. Map: sum of
    the four, Gaussian of 7 pixels; score: the image's probability.

    Train it on a cohort with masks of any kind, then ``normscan calibrate`` on healthy scans of yours.

    Departures:
        epochs: 20, whose weights the release's logs load; its program's default is 3.
        mosaics: a fifth of the release's training images are four put together; ours aren't.
        rate: follows the cosine by steps; there by epochs.

    Args:
        layers: numbers of the blocks, from 1, whose patches are compared.
    """
    return SimCLIP(*_simple(options, layers), layers, options)


@register(
    "simclip_plus",
    paper="Deng 2024",
    regime="few-anomalies",
    presets={"laptop": _LAPTOP},
    preprocess=PICTURE,
    postprocess=("smooth=7",),
    tiny={**_TINY, "shots": 8},
    options=_SIMPLE,
)
def simclip_plus(
    dims: int = 2,
    channels: int = 1,
    shots: int = 4,
    layers: tuple[int, ...] = (6, 12, 18, 24),
    **options: Unpack[Trained],
) -> Method:
    """SimCLIP with a memory of a few healthy images (SimCLIP+).

    Deng et al., ACM Multimedia 2024: trained as ``simclip``. From its map is taken what the same
    sentences say of the nearest patch in memory, weighted by half of one plus the cosine to it, and the
    distance to it, half of one minus the cosine, is added, both summed over the four depths. Score: the
    mean of the image's probability and of the maximum of map and distance, before anything is taken
    away.

    Departures:
        smoothing: all of the map; the release smooths all but the distances.
        score: the maximum is divided by the number of depths; there it is brought to 0..1 over the
            test set, and it is of a smoothed map.
        references: of the training cohort, drawn by the seed; there of the class that is tested.
        epochs, mosaics, rate: as of ``simclip``.

    Args:
        shots: healthy references.
        layers: numbers of the blocks, from 1, whose patches are compared.
    """
    return SimCLIPPlus(*_simple(options, layers), layers, options, shots)
