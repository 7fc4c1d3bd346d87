"""Two modalities of one subject: translated to the other one and back, in spite of corruption."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player, Use, adam
from normscan.methods.reconstruction import absolute
from normscan.networks.spectral import SpectralJudge, SpectralUNet
from normscan.registry import register
from normscan.synthesis.noise import raised


@dataclass(frozen=True)
class DualWeights:
    """Of the terms of ``metaad``, in the order of its docstring."""

    adversarial: float
    cycle: float
    identity: float
    paired: float
    denoised: float
    between: float
    contrast: float


class DualPath(Method):
    """Translators between modalities and judges of both; see ``metaad``.

    Args:
        translators: to the image's modality, and to the target's.
        judges: of both, in the same order.
        weights: of the translators' terms.
        clean: the clean images have a path of their own; else it is the corrupted ones'.
        phase: of both players.
    """

    uses = MappingProxyType({"target": Use()})

    def __init__(
        self, translators: list[nn.Module], judges: list[nn.Module], weights: DualWeights,
        clean: bool, phase: Phase,
    ) -> None:  # fmt: skip
        super().__init__()
        self.translators, self.judges = nn.ModuleList(translators), nn.ModuleList(judges)
        self.weights, self.clean = weights, clean
        self._phase = phase

    def phases(self) -> list[Phase]:
        return [self._phase]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.target is not None
        real = [2 * batch.image - 1, 2 * batch.target - 1]
        if player == "judges":
            return self._judges(real)
        return self._translators(real, [raised(x, batch.rng) for x in real])

    def _translators(self, real: list[Tensor], corrupted: list[Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        weights = self.weights
        for side, here in enumerate(("image", "target")):
            x, to = real[side], self.translators[1 - side]
            moved_corrupted = to(corrupted[side])
            back_corrupted = self.translators[side](moved_corrupted)
            moved, back = moved_corrupted, back_corrupted
            if self.clean:
                moved = to(x)
                back = self.translators[side](moved)
            if x.shape == real[1 - side].shape:
                stayed = self.translators[side](x)
                terms[f"identity of {here}"] = weights.identity * F.l1_loss(stayed, x)
            between = F.l1_loss(moved, moved_corrupted)
            apart = 2 - F.l1_loss(back_corrupted, corrupted[side])
            terms |= {
                f"adversarial from {here}": -weights.adversarial
                * self.judges[1 - side](moved).mean(),
                f"cycle from {here}": weights.cycle * F.l1_loss(back, x),
                f"paired from {here}": weights.paired * F.l1_loss(moved, real[1 - side]),
                f"denoised from {here}": weights.denoised * F.l1_loss(back_corrupted, x),
                f"between from {here}": weights.between * between,
                f"contrast from {here}": weights.contrast * apart,
            }
        return terms

    def _judges(self, real: list[Tensor]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for side, here in enumerate(("image", "target")):
            with torch.no_grad():
                moved = self.translators[side](real[1 - side])
            judge, weight = self.judges[side], self.weights.adversarial / 2
            terms[f"real {here}"] = weight * F.relu(1 - judge(real[side])).mean()
            terms[f"fake {here}"] = weight * F.relu(1 + judge(moved)).mean()
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        x = 2 * batch.image - 1
        restored = self.translators[0](self.translators[1](x))
        error = (x - restored).flatten(1)
        return Maps(
            map=absolute(x, restored) / 2,
            score=error.amax(1) - error.amin(1),
            reconstruction=(restored + 1) / 2,
        )


@register(
    "metaad",
    paper="Huang 2024",
    regime="paired-modality",
    dims=(2, 3),
    presets={
        "code": {"clean": False, "paired": 0.0, "between": 0.0, "contrast": 0.0},
        "laptop": {"size": 64, "width": 8, "batch_size": 4, "steps": 400, "lr": 1e-3},
    },
    preprocess={"scaling": "minmax", "limit": 1.0},
    tiny={
        "size": 32, "width": 2, "multipliers": (1, 2), "blocks": 1, "batch_size": 2, "steps": 40,
        "lr": 5e-3,
    },
)  # fmt: skip
def metaad(
    dims: int = 3,
    channels: int = 1,
    targets: int = 1,
    size: int = 64,
    width: int = 16,
    multipliers: tuple[int, ...] = (1, 2, 4, 4),
    blocks: int = 2,
    adversarial: float = 1.0,
    cycle: float = 10.0,
    identity: float = 5.0,
    paired: float = 1.0,
    denoised: float = 1.0,
    between: float = 1.0,
    contrast: float = 1.0,
    clean: bool = True,
    lr: float = 2e-4,
    batch_size: int = 2,
    steps: int = 20_000,
) -> Method:
    """Images to another modality and back, held to undo what is corrupted on the way (MetaAD).

    Huang et al., MICCAI 2024: positron emission tomography of sugar (FDG) is translated to that of
    dopamine transporters (CFT) and back, both learnt from healthy subjects. Terms, for either
    modality: a judge takes the translation for real (hinge), the way back (mean |x - back|), what is
    translated to its own modality stays, the translation is the subject's other image, and a second
    path: the image with a box of raised uptake comes back without it, its translation is that of
    the clean image, and it ends far from the corrupted image (2 - the mean difference). U-Nets of
    16, 32, 64 and 64 channels with two residual blocks a level, all weights spectrally normalised;
    Adam 2e-4, betas 0.5 and 0.999, batches of 2. The map is the absolute difference to the way
    back; the score its largest minus its smallest signed value. New scans need the first modality
    alone. Each scan is brought from its minimum to its maximum.

    The release leaves weights of terms, size and number of updates blank: those here are our choice.
    ``code`` is the trainer that its command imports: corrupted images go both ways, so that clean
    ones have no path, and the terms of the pair, of the translations and of the distance are gone.
    The corruption is the one of that trainer, which only raises uptake; the one of the other
    trainer can't run. Initial weights are PyTorch's, with biases of 0: the draw of the release
    doesn't reach weights under spectral norm.

    Departures:
        box: a share of each axis; voxels of an image whose size isn't told in the release.
        pairs: every healthy subject has both images; in the release some have one, beside which
            another subject's stands.
        masking: the release's other corruption, blocks set to the minimum, is left out.
        identity: only where both modalities have as many channels.
        map: half of the release's, whose images run from -1 to 1.

    Args:
        targets: channels of the other modality.
        size: pixels along each axis, a multiple of 2 for each level but one.
        width: channels of the first level, and of the judges' first convolution.
        multipliers: of the width, for each level.
        blocks: residual blocks of a level.
        adversarial: weight of the judges.
        cycle: weight of the way back.
        identity: weight of what stays in its own modality.
        paired: weight of the subject's other image.
        denoised: weight of the way back of the corrupted image to the clean one.
        between: weight of the difference of both paths' translations.
        contrast: weight of the distance from the corrupted image.
        clean: clean images have a path of their own; else it is that of the corrupted ones.
        lr: learning rate of Adam, for both players.
        batch_size: subjects in an update.
        steps: updates of each player.
    """

    def unet(a: int, b: int) -> nn.Module:
        return SpectralUNet(dims, a, b, width, multipliers, blocks)

    translators = [unet(targets, channels), unet(channels, targets)]
    judges: list[nn.Module] = [SpectralJudge(dims, n, width) for n in (channels, targets)]
    optimizer = adam(lr, betas=(0.5, 0.999))
    players = [
        Player("translators", translators, optimizer), Player("judges", judges, optimizer)
    ]  # fmt: skip
    weights = DualWeights(adversarial, cycle, identity, paired, denoised, between, contrast)
    phase = Phase("translate", players, steps, batch_size=batch_size)
    return DualPath(translators, judges, weights, clean, phase)
