"""Many tasks: networks that each learn some kinds of anomalies and are chosen by the others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, nearest
from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.nnunet import Placed, PlainUNet
from normscan.registry import register
from normscan.synthesis.corruption import Corruption, Mixture
from normscan.synthesis.donors import partners
from normscan.synthesis.draws import spread_out
from normscan.synthesis.tasks import five_tasks

FIVE = ("poisson_intra", "poisson_inter", "sink", "source", "intensity")
_SLOWER = 0.9997122182804811  # in each update: a tenth after 8,000 of them
_SLOWEST = 1 / 20


def warmed(updates: int) -> Callable[[int, int], float]:
    """Learning-rate factor: 0.01 to 1 over some updates, then slowly down to 0.05."""

    def factor(step: int, steps: int) -> float:
        if step < updates:
            return 0.01 + 0.99 * step / updates
        return max(_SLOWEST, _SLOWER ** (step - updates))

    return factor


class ManyTasks(Method):
    """An ensemble of which each network learns its own choice of tasks; see ``many_tasks``.

    Args:
        networks: image to one channel, one network for each choice.
        choices: names of the tasks that each network learns.
        parts: all tasks by name.
        flip: mirror half of the images along the first axis.
        training: from a network and the name of its phase to the phase.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        choices: Sequence[tuple[str, ...]],
        parts: dict[str, Corruption],
        flip: bool,
        training: Callable[[nn.Module, str], Phase],
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._choices = {" + ".join(names): names for names in choices}
        self._parts, self._flip, self._training = parts, flip, training

    def phases(self) -> list[Phase]:
        pairs = zip(self.networks, self._choices, strict=True)
        return [self._training(network, name) for network, name in pairs]

    def corruption(self, phase: str, training: bool) -> Mixture:
        """What a phase plants: its own tasks in training, at validation those it doesn't learn."""
        own = self._choices[phase]
        others = [name for name in self._parts if name not in own]
        return Mixture(tuple(self._parts[name] for name in (own if training else others or own)))

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        network = self.networks[list(self._choices).index(phase)]
        x, objects, n = batch.image, batch.foreground, len(batch)
        if self._flip:
            mirrored = spread_out(batch.rng.uniform((n, 1)) < 0.5, x.ndim - 2).to(x.device)
            x = torch.where(mirrored, x.flip(2), x)
            objects = torch.where(mirrored, objects.flip(2), objects)
        donor, donor_objects = partners(x, objects, batch.position, batch.subject)
        made = self.corruption(phase, network.training)(x, donor, batch.rng, objects, donor_objects)
        terms = {"l2": F.mse_loss(network(made.image), made.label)}
        if not network.training:
            terms["healthy"] = network(x).square().mean()
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        each = torch.stack([network(batch.image) for network in self.networks])
        return Maps(map=each.mean(0).clamp(0, 1))


@register(
    "many_tasks",
    paper="Baugh 2023",
    dims=(2, 3),
    presets={
        "radiograph": {
            "dims": 2, "size": 256, "levels": 7, "furthest": 10.0, "unit": 0.1, "lr": 5e-3, "batch_size": 50,
            "preprocess": {"scaling": "equalise", "crop": "none"},
        },
        "laptop": {
            "dims": 2, "size": 64, "width": 8, "levels": 4, "steps": 300, "batch_size": 8,
            "lr": 2e-3, "warm_up": 20,
        },
    },
    reduction="mean",
    preprocess={"scaling": "zscore", "limit": 10.0},
    tiny={
        "size": 32, "width": 4, "levels": 2, "features": 2, "tasks": ("sink", "intensity"),
        "train_tasks": 1, "steps": 30, "batch_size": 4, "lr": 5e-3, "warm_up": 5,
    },
    options=schedule(lr=1e-3, batch_size=8, epochs=2000, patience=45),
)  # fmt: skip
def many_tasks(
    dims: int = 3,
    channels: int = 1,
    size: int = 112,
    width: int = 32,
    levels: int = 5,
    features: int = 32,
    tasks: tuple[str, ...] = FIVE,
    train_tasks: int = 4,
    furthest: float = 5.0,
    unit: float = 0.2,
    warm_up: int = 100,
    **training: Unpack[Schedule],
) -> Method:
    """Many tasks make light work: an ensemble whose networks are chosen by tasks they never saw.

    Baugh et al., MICCAI 2023 (arXiv 2307.00899). Five tasks plant up to four anomalies each, in
    sheared and turned boxes or ellipsoids of which half lies on the anatomy: patches of other
    healthy scans or of another data set with mixed Poisson gradients, tissue pulled in or pushed out
    by 0.5 to 5 voxels, and smooth changes of intensity. A plain U-Net (32 to 320 channels, instance
    norms) sees the image beside 3 coordinates and 64 Fourier features of them, and learns
    1 - exp(-d^2 / 0.08) of the change d by its squared error. For each choice of ``train_tasks`` of
    the tasks a network is trained on these and kept at its best loss on the remaining ones and on
    healthy images; the map is the mean of them all, cut to 0..1. The article reports 1 to 4. AdamW
    1e-3, 100 updates of warm-up, slowly down to a twentieth, batches of 8, up to 2,000 passes or
    until 5,000 updates bring no gain. Scans of 80 x 112 x 80 voxels, mean 0 and deviation 1;
    ``preset=radiograph`` has the settings for chest radiographs; ``preset=laptop`` takes slices too.

    Departures:
        scans: all training scans for each network and the detector's validation scans for its
            choice; the release parts the scans into five as it parts the tasks.
        other data set: the textures of other training scans, in another order; the release takes
            abdominal CT for brains and photographs for radiographs.
        donors: any place of them, read linearly between pixels, as deformed tissue is; in the
            release the middle of a patch lies on anatomy, and cubic splines read it.
        grid: cubes of ``size``; the release keeps the shape of its scans.
        patience: looks, one a pass, as many as make 5,000 updates in the release's cohort.
        heads: the network has its last output alone; the release's holds unused ones of deeper
            levels.
        radiographs: from 0 to 1, and changes of half the size; from -1 to 1 in the release.

    Args:
        width: channels of the network's first level.
        levels: of the network.
        features: Fourier features of the place, a sine and a cosine each.
        tasks: that are shared out, of the five names.
        train_tasks: how many of them each network learns; with all of them there is one network,
            chosen by its own tasks.
        furthest: pixels by which tissue is moved at most.
        unit: deviation of the label and scale of the changes of intensity, in the image's unit.
        warm_up: updates over which the learning rate rises.
    """
    unknown = [name for name in tasks if name not in FIVE]
    if unknown:
        raise ArgumentError(
            f"many_tasks has no task '{unknown[0]}'.{nearest(unknown[0], FIVE)} "
            f"It has: {', '.join(FIVE)}."
        )
    if not 1 <= train_tasks <= len(tasks):
        raise ArgumentError(
            f"train_tasks is {train_tasks}, but there are {len(tasks)} tasks: use 1 to {len(tasks)}."
        )
    rhythm = warmed(warm_up)
    known = five_tasks(unit, (0.5, furthest))
    inputs = channels + Placed.extra(dims, features)
    return ManyTasks(
        [
            Placed(PlainUNet(dims, inputs, width, levels), dims, features)
            for _ in range(math.comb(len(tasks), train_tasks))
        ],
        list(itertools.combinations(tasks, train_tasks)),
        {name: known[name] for name in tasks},
        dims == 3,
        lambda net, name: phase(
            net, training, name, keep="best", optimizer=torch.optim.AdamW, rhythm=rhythm
        ),
    )
