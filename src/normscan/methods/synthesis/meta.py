"""A network that adapts itself to each scan by looking for patches of it in healthy ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.networks.norms import kept_statistics
from normscan.networks.wide import WideResidual
from normscan.registry import register
from normscan.rng import Rng
from normscan.synthesis import tasks
from normscan.synthesis.corruption import Corruption
from normscan.synthesis.donors import partners

Weights = dict[str, Tensor]


class Adaptation(NamedTuple):
    """How the network adapts to a scan.

    Attributes:
        updates: steps downhill.
        lr: their size.
        support: healthy images that get patches of the scan.
    """

    updates: int
    lr: float
    support: int


class MetaDetector(Method):
    """See ``meta_detector``.

    Args:
        network: image to one channel of logits.
        adapted: beginnings of the names of the parameters that adapt.
        corrupt: what is planted into scans in training, and of scans into healthy ones.
        adaptation: to each scan.
        queries: scans of a batch that are adapted to in an update.
        references: healthy images that are kept for prediction.
        training: the shared arguments.
    """

    def __init__(
        self,
        network: nn.Module,
        adapted: tuple[str, ...],
        corrupt: Corruption,
        adaptation: Adaptation,
        queries: int,
        references: int,
        training: Schedule,
    ) -> None:
        super().__init__()
        self.network = network
        self._adapted, self._corrupt, self._adaptation = adapted, corrupt, adaptation
        self._queries, self._kept, self._training = queries, references, training
        self.references: Tensor
        self.heights: Tensor
        self.register_buffer("references", torch.zeros(0))
        self.register_buffer("heights", torch.zeros(0))

    def phases(self) -> list[Phase]:
        return [phase(self.network, self._training, "episodes")]

    def trajectory(self, query: Tensor, hosts: Tensor, rng: Rng) -> list[Weights]:
        """The adapting weights before and after each step towards a scan (1, C, H, W).

        Each host (S, C, H, W) gets a patch of the scan, and the network learns its share there. In
        training all steps stay open to gradients.
        """
        objects = torch.ones_like(hosts[:, :1], dtype=torch.bool)
        made = self._corrupt(hosts, query.expand_as(hosts), rng, objects)
        deep = self.network.training and torch.is_grad_enabled()
        weights: Weights = {
            n: w for n, w in self.network.named_parameters() if n.startswith(self._adapted)
        }
        if not deep:
            weights = {n: w.detach().clone().requires_grad_() for n, w in weights.items()}
        points = [weights]
        with torch.enable_grad(), kept_statistics(self.network, "running"):
            for _ in range(self._adaptation.updates):
                output = functional_call(self.network, points[-1], (made.image,))
                loss = F.binary_cross_entropy_with_logits(output, made.label)
                slopes = torch.autograd.grad(loss, list(points[-1].values()), create_graph=deep)
                steps = zip(points[-1].items(), slopes, strict=True)
                points.append({n: w - self._adaptation.lr * g for (n, w), g in steps})
        return points

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        x, n = batch.image, len(batch)
        donor, objects = partners(x, batch.foreground, batch.position, batch.subject)
        made = self._corrupt(x, donor, batch.rng, batch.foreground, objects)
        seeds = batch.rng.integers(0, 2**62, (n, 1))[:, 0].tolist()
        # Before any step it is plain FPI, of the whole batch, by which the norms learn.
        terms = [F.binary_cross_entropy_with_logits(self.network(made.image), made.label)]
        queries = min(n, self._queries)
        terms += [x.new_zeros(()) for _ in range(self._adaptation.updates)]
        for i in range(queries):
            others = torch.arange(n, device=x.device) != i
            hosts = _nearest(x[others], batch.position[others], batch.position[i], self._adaptation)
            query, label = made.image[i : i + 1], made.label[i : i + 1]
            points = self.trajectory(query, hosts if n > 1 else x.flip(2), Rng(seeds[i]))
            with kept_statistics(self.network, "running"):
                for k, weights in enumerate(points[1:], 1):
                    output = functional_call(self.network, weights, (query,))
                    missed = F.binary_cross_entropy_with_logits(output, label)
                    terms[k] = terms[k] + missed / queries
        return {f"after {k}": term for k, term in enumerate(terms)}

    @torch.no_grad()
    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep healthy images, spread over all heights."""
        heights = torch.cat([batch.position for batch in batches]).float().cpu()
        kept = heights.argsort(stable=True)[
            torch.linspace(0, len(heights) - 1, min(self._kept, len(heights))).round().long()
        ]
        chosen, seen = set(kept.tolist()), 0
        images, places = [], []
        for batch in batches:
            mine = [i for i in range(len(batch)) if seen + i in chosen]
            images.append(batch.image[mine])
            places.append(batch.position[mine].float())
            seen += len(batch)
        self.references, self.heights = torch.cat(images), torch.cat(places)

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        if not self.references.numel():  # nothing to adapt with
            return Maps(map=self.network(batch.image).sigmoid())
        seeds = batch.rng.integers(0, 2**62, (len(batch), 1))[:, 0].tolist()
        found = []
        for query, height, seed in zip(batch.image, batch.position, seeds, strict=True):
            hosts = _nearest(self.references, self.heights, height, self._adaptation)
            points = self.trajectory(query[None], hosts, Rng(seed))
            outputs = [functional_call(self.network, w, (query[None],)).sigmoid() for w in points]
            found.append(torch.stack(outputs).mean(0))
        return Maps(map=torch.cat(found))


def _nearest(images: Tensor, heights: Tensor, height: Tensor, adaptation: Adaptation) -> Tensor:
    """The images (S, C, H, W) whose heights are nearest to one."""
    order = (heights - height.to(heights)).abs().argsort(stable=True)
    return images[order[: adaptation.support]]


@register(
    "meta_detector",
    paper="Tan 2021",
    presets={
        "laptop": {
            "size": 64, "width": 8, "momentum": 0.1, "steps": 200, "batch_size": 12, "queries": 2,
            "support": 4, "updates": 2,
        },
    },
    reduction="mean",
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "size": 32, "width": 4, "levels": 2, "momentum": 0.1, "steps": 50, "batch_size": 8,
        "lr": 1e-2, "core": 0.8, "queries": 1, "support": 4, "updates": 2, "references": 16,
    },
    options=schedule(lr=1e-3, batch_size=16, epochs=50),
)  # fmt: skip
def meta_detector(
    dims: int = 2,
    channels: int = 1,
    size: int = 256,
    width: int = 16,
    levels: int = 4,
    momentum: float = 0.01,
    core: float = 0.5,
    updates: int = 3,
    inner_lr: float = 1e-2,
    support: int = 8,
    queries: int = 4,
    references: int = 64,
    **training: Unpack[Schedule],
) -> Method:
    """MetaDetector: foreign-patch interpolation that adapts to each scan before it judges it.

    Tan et al., MOOD 2021 (LNCS 13166, 119-126). Training is episodic, as in MAML (Finn et al., ICML
    2017). Patches of a scan are laid into healthy reference images (FPI), and the layers of FPI's
    network that lie next to its bottleneck take a few steps towards finding them there; the network
    is then to find an irregularity that was planted into the scan itself. That loss is taken at
    several points of the way and summed, and its gradients run through the steps. At prediction the
    scan's own patches go into kept reference images in the same way, and every scan begins from the
    same weights. Images from 0 to 1. There is no released code. A saved detector holds the
    reference images themselves.

    Departures:
        steps: our choice, 3 of 0.01; 8 reference images an episode, 4 episodes an update.
        adapting layers: our choice, the last residual block before and the first one behind the
            narrowest grid.
        norms: our choice. The loss before the first step is that of the whole batch, which gives the
            running statistics; within episodes these are used as they are.
        references: our choice, 64 healthy images spread over all heights, of which the nearest in
            height serve.
        map: our choice, the mean of what the network says before and after each step.
        the rest: FPI's, see ``fpi``.

    Args:
        width: channels of the first convolution; the widest has 16 times as many.
        levels: how often the network halves its grid.
        momentum: share of a batch in the running statistics of the norms; more for short runs.
        core: central share of each axis that holds the centres of patches.
        updates: steps towards a scan.
        inner_lr: size of these steps.
        support: reference images that a scan's patches go into.
        queries: scans that are adapted to in an update of the training.
        references: healthy images that are kept for prediction.
    """
    return MetaDetector(
        WideResidual(dims, channels, 1, width, levels, momentum),
        (f"blocks.{levels}.", f"blocks.{levels + 1}."),
        tasks.fpi(core),
        Adaptation(updates, inner_lr, support),
        queries,
        references,
        training,
    )
