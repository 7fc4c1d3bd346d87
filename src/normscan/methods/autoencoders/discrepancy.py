"""Two ensembles of autoencoders: healthy scans alone, and healthy with unlabelled ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, Unpack

import torch
from torch import Tensor, nn

from normscan.errors import ArgumentError
from normscan.methods.autoencoders.compact import (
    COMPACT,
    PICTURE,
    Compact,
    memory_autoencoder,
    small_latent_autoencoder,
    split_uncertainty,
    uncertainty_autoencoder,
)
from normscan.methods.autoencoders.plain import OWN_RANGE
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.reconstruction import Reconstruction
from normscan.methods.schedule import Schedule, phase, settings
from normscan.networks.blocks import layer
from normscan.objectives.segmentation import focal
from normscan.registry import register
from normscan.scores.discrepancy import Discrepancy, discrepancies
from normscan.synthesis.mixing import patch_mix

Backbone = Literal["ae", "ae_u", "memae"]
Refined = Literal["dual", "intra"]

_INPUTS: dict[Refined, tuple[Discrepancy, ...]] = {
    "dual": ("inter", "intra"),
    "intra": ("intra",),
}

_OPTIONS = COMPACT(hidden=2048, lr=5e-4, beta1=0.5)
_LAPTOP = {
    "hidden": 256, "batch_size": 16, "steps": 300, "lr": 1e-3, "beta1": 0.9,
    "preprocess": {**OWN_RANGE, "scaling": "median"},
}  # fmt: skip
_TINY = {
    "size": 32, "width": 8, "hidden": 64, "latent": 8, "members": 2, "batch_size": 16, "steps": 200,
    "lr": 3e-3, "beta1": 0.9, "preprocess": {**OWN_RANGE, "scaling": "auto"},
}  # fmt: skip


def ensembles(
    backbone: Backbone, members: int, dims: int, channels: int, options: Compact
) -> nn.ModuleDict:
    """The members of both ensembles, A1, A2, ..., B1, B2, ...

    Raises:
        ArgumentError: fewer than two members.
    """
    if members < 2:
        raise ArgumentError(f"members={members}; a standard deviation takes 2 or more.")
    builds: dict[Backbone, Callable[..., Method]] = {
        "ae": small_latent_autoencoder,
        "ae_u": uncertainty_autoencoder,
        # Without shrinkage, unlike the method of this name.
        "memae": partial(memory_autoencoder, shrink=0.0, entropy_weight=2e-4),
    }
    build = builds[backbone]
    names = [f"{ensemble}{k + 1}" for ensemble in "AB" for k in range(members)]
    return nn.ModuleDict({n: build(dims=dims, channels=channels, **options) for n in names})


def refining_network(dims: int, inputs: int, filters: int) -> nn.Sequential:
    """Three 3x3 convolutions to the logits of healthy and anomalous."""
    parts: list[nn.Module] = []
    for a, b in ((inputs, filters), (filters, filters)):
        parts += [layer("conv", dims, a, b, 3, padding=1), layer("batch_norm", dims, b), nn.ReLU()]
    return nn.Sequential(*parts, layer("conv", dims, filters, 2, 3, padding=1))


class DualEnsemble(Method):
    """Members A1.. learn from healthy and unlabelled scans, B1.. from healthy ones; see ``ddad``.

    Args:
        members: of both ensembles, by name.
        training: of each member.
        uncertain: the members also restore the log variance of their error.
        score: which discrepancy is the map.
    """

    def __init__(
        self, members: nn.ModuleDict, training: Schedule, uncertain: bool,
        score: Discrepancy = "inter",
    ) -> None:  # fmt: skip
        super().__init__()
        self.members = members
        self.uncertain, self.score = uncertain, score
        self._training = training

    def member(self, name: str) -> Reconstruction:
        """A member by its name, such as ``A1``."""
        found = self.members[name]
        assert isinstance(found, Reconstruction)
        return found

    def phases(self) -> list[Phase]:
        parts = {"A": "healthy+unlabelled", "B": "healthy"}
        return [
            phase(self.member(name).network, self._training, name, parts[name[0]])
            for name in self.members
        ]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        return self.member(phase).loss(batch, phase, player)

    @torch.no_grad()
    def discrepancies(self, image: Tensor) -> tuple[dict[Discrepancy, Tensor], Tensor]:
        """Maps of images (N, C, *spatial) in 0..1, and what B restores of them, in 0..1."""
        x = 2 * image - 1
        outputs = {name: self.member(name).network(x) for name in self.members}
        a, b = (torch.stack([o for n, o in outputs.items() if n[0] == e]) for e in "AB")
        variance = None
        if self.uncertain:
            a = torch.stack([split_uncertainty(o)[0] for o in a])
            restored, log_variance = zip(*map(split_uncertainty, b), strict=True)
            b, variance = torch.stack(restored), torch.stack(log_variance).exp().mean(0)
        return discrepancies(x, a, b, variance), (b.mean(0) + 1) / 2

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found, restored = self.discrepancies(batch.image)
        return Maps(map=found[self.score], reconstruction=restored, uncertainty=found["intra"])


class RefinedDualEnsemble(DualEnsemble):
    """A network that learnt on artificial anomalies reads the discrepancies; see ``ddad_asr``.

    Args:
        members: of both ensembles, by name.
        training: of each member.
        uncertain: the members also restore the log variance of their error.
        refiner: discrepancies to the logits of healthy and anomalous.
        inputs: which discrepancies the network reads.
        refining: the shared arguments for the network.
    """

    def __init__(
        self, members: nn.ModuleDict, training: Schedule, uncertain: bool, *,
        refiner: nn.Sequential, inputs: tuple[Discrepancy, ...], refining: Schedule,
    ) -> None:  # fmt: skip
        super().__init__(members, training, uncertain)
        self.refiner, self.inputs = refiner, inputs
        self._refining = refining

    def phases(self) -> list[Phase]:
        refine = phase(self.refiner, self._refining, "refine")
        # The last weights, as in the article; the loss on few validation patches is a lottery.
        return [*super().phases(), replace(refine, validate_every=0, keep="last")]

    def refine(self, found: dict[Discrepancy, Tensor]) -> Tensor:
        """Probability (N, 1, *spatial) of an anomaly."""
        logits: Tensor = self.refiner(torch.cat([found[name] for name in self.inputs], dim=1))
        return logits.softmax(dim=1)[:, 1:]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase != "refine":
            return super().loss(batch, phase, player)
        # The batch is in random order, so that its neighbour is any other training image.
        mixed, mask = patch_mix(batch.image, batch.image.roll(1, 0), batch.rng)
        return {"focal": focal(self.refine(self.discrepancies(mixed)[0]), mask)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found, restored = self.discrepancies(batch.image)
        return Maps(map=self.refine(found), reconstruction=restored, uncertainty=found["intra"])


@register(
    "ddad",
    paper="Cai 2022",
    regime="healthy+unlabelled",
    dims=(2, 3),
    presets={"laptop": _LAPTOP},
    preprocess=PICTURE,
    reduction="mean",
    tiny=_TINY,
    options=_OPTIONS,
)
def dual_distribution_discrepancy(
    dims: int = 2,
    channels: int = 1,
    backbone: Backbone = "ae",
    members: int = 3,
    score: Discrepancy = "inter",
    **options: Unpack[Compact],
) -> Method:
    """Dual-distribution discrepancy of two ensembles of autoencoders.

    Cai et al., MICCAI 2022: ensemble B learns from healthy scans, ensemble A also from unlabelled
    ones, of which 60 % are anomalous in the article's default. Where their mean restorations
    differ, the unlabelled scans taught A what healthy ones don't show. Only the seed differs inside
    an ensemble. The network is that of ``ae4ad`` with 2048 hidden numbers, trained for 250 epochs
    with 0.0005 and a first momentum of 0.5. With ``ae_u`` the maps are in units of the root of B's
    mean variance. The image score is the mean of the map; the uncertainty is ``intra``.

    Departures:
        unlabelled: all scans of the split ``extra``; the article counts 4,000.
        log variance: with ``ae_u`` cut to -10..10, so that its exponential stays finite in half
            precision; without bounds in the release.
        last batch: a smaller one at the end of an epoch trains, too; the release drops it.
        third axis: ours.

    Args:
        backbone: the members: ``ae`` with the squared error, ``ae_u`` with its own variance, or
            ``memae`` with a memory of 25 codes without shrinkage.
        members: of each ensemble, 2 or more.
        score: ``inter``, the difference between the ensembles, ``intra``, the deviation within B,
            or ``rec``, the squared residual of B.
    """
    found = ensembles(backbone, members, dims, channels, options)
    return DualEnsemble(found, options, backbone == "ae_u", score)


@register(
    "ddad_asr",
    paper="Cai 2023",
    regime="healthy+unlabelled",
    dims=(2, 3),
    presets={
        "laptop": {**_LAPTOP, "filters": 16, "refine_steps": 200, "refine_lr": 1e-3},
    },
    preprocess=PICTURE,
    reduction="mean",
    tiny={**_TINY, "filters": 8, "refine_steps": 200, "refine_lr": 1e-2},
    options=_OPTIONS,
)
def refined_dual_distribution_discrepancy(
    dims: int = 2,
    channels: int = 1,
    backbone: Backbone = "ae",
    members: int = 3,
    refined: Refined = "dual",
    filters: int = 128,
    refine_lr: float = 1e-4,
    refine_batch_size: int = 8,
    refine_epochs: int = 100,
    refine_steps: int | None = None,
    **options: Unpack[Compact],
) -> Method:
    """Dual-distribution discrepancy, refined by a network that saw artificial anomalies.

    Cai et al., Medical Image Analysis 2023: the ensembles of ``ddad`` are frozen, and three
    convolutions of 128 channels learn from the discrepancies to find a square of another healthy
    image, blended into half of the images with a random share (focal loss, 100 epochs). The map is
    the probability of an anomaly, the image score its mean. With ``ae_u`` the discrepancies are in
    units of the variance's root.

    Departures:
        all those of ``ddad``.
        other image: of the same batch; any other training image in the release.

    Args:
        backbone: the members, as in ``ddad``: ``ae``, ``ae_u`` or ``memae``.
        members: of each ensemble, 2 or more.
        refined: ``dual`` for the discrepancies between and within the ensembles, ``intra`` for that
            within the healthy one alone.
        filters: channels of the refining network.
        refine_lr: learning rate of Adam for the refining network.
        refine_batch_size: images in one of its updates.
        refine_epochs: its passes over the healthy training images.
        refine_steps: number of its updates instead of ``refine_epochs``.
    """
    found = ensembles(backbone, members, dims, channels, options)
    inputs = _INPUTS[refined]
    return RefinedDualEnsemble(
        found,
        options,
        backbone == "ae_u",
        refiner=refining_network(dims, len(inputs), filters),
        inputs=inputs,
        refining=settings(
            lr=refine_lr, beta1=0.5, weight_decay=1e-4, batch_size=refine_batch_size,
            epochs=refine_epochs, steps=refine_steps,
        ),
    )  # fmt: skip
