"""3D-ADNAS: two restoring branches whose features meet in cells, which can be searched for."""

from __future__ import annotations

import itertools
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player, Use, adam
from normscan.methods.features.urd import Textures
from normscan.methods.schedule import Schedule, phase, schedule
from normscan.methods.synthesis.draem import padded_ssim
from normscan.networks.discriminative import RestoringNetwork
from normscan.networks.fusion import FusionCell, Node
from normscan.objectives.segmentation import focal
from normscan.registry import register
from normscan.synthesis import tasks
from normscan.synthesis.augment import three_of_ten

# Of the three cells, inputs counted from 0: the first modality, the second, and in the last two what
# the cell before gave.
CELLS: tuple[tuple[Node, ...], ...] = (
    ((0, 1, "glu"), (0, 2, "mish")),
    ((0, 1, "attention"), (2, 3, "glu")),
    ((0, 1, "mish"), (2, 3, "glu")),
)


class Branch(RestoringNetwork):
    """A restoring network that shows its early, middle and late features."""

    def features(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The restored image, and features of the first, the deepest and the last level."""
        *body, last = self.network
        levels = [i for i, part in enumerate(body) if isinstance(part, nn.Sequential)]
        kept = {}
        for i, part in enumerate(body):
            x = part(x)
            kept[i] = x
        return last(x), (kept[levels[0]], kept[levels[4]], x)


class Fused(nn.Module):
    """Two branches and three cells; logits of healthy and anomalous.

    Args:
        channels: of both modalities.
        width: channels of a branch's first level.
        fused: channels of the cells.
        cells: choices of the three; None to search them.
        places: along each side of the grid on which features meet.
        head: channels of its hidden layers.
    """

    def __init__(
        self, channels: tuple[int, int], width: int, fused: int,
        cells: tuple[tuple[Node, ...], ...] | None, places: int, head: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.places, self.searching = places, False
        self.branches = nn.ModuleList(Branch(c, width) for c in channels)
        widths = (width, 8 * width, width)
        self.enter = nn.ModuleList(
            nn.Conv2d(w, fused, 1) for _, w in itertools.product(channels, widths)
        )
        chosen = (None,) * 3 if cells is None else cells
        self.cells = nn.ModuleList(
            FusionCell(fused, 2 + (i > 0), choice) for i, choice in enumerate(chosen)
        )
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise((fused + 2 * width, *head, 2)):
            layers += [nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.LeakyReLU(0.2)]
        self.head = nn.Sequential(*layers)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.xavier_normal_(part.weight)

    def forward(self, images: tuple[Tensor, Tensor]) -> tuple[list[Tensor], Tensor]:
        """Restored images, and logits (B, 2, H, W)."""
        both = []
        for branch, image in zip(self.branches, images, strict=True):
            assert isinstance(branch, Branch)
            both.append(branch.features(image))
        grid = (min(self.places, images[0].shape[2]), min(self.places, images[0].shape[3]))
        found: Tensor | None = None
        for level, cell in enumerate(self.cells):
            inputs = [
                F.interpolate(self.enter[3 * i + level](f[level]), grid, mode="bilinear")
                for i, (_, f) in enumerate(both)
            ]
            found = cell([*inputs, *([] if found is None else [found])], self.searching)
        assert found is not None
        whole = F.interpolate(found, images[0].shape[2:], mode="bilinear")
        logits: Tensor = self.head(torch.cat([whole, *(f[2] for _, f in both)], 1))
        return [restored for restored, _ in both], logits


class ADNAS3D(Method):
    """Restoring branches and cells; see ``adnas_3d``.

    Args:
        network: both branches, the cells and the head.
        search: updates of the search; 0 where the cells are given.
        textures: of the planted anomalies.
        training: the shared arguments.
    """

    def __init__(self, network: Fused, search: int, textures: Textures, training: Schedule) -> None:
        super().__init__()
        self.uses = {"target": Use(prediction="needed")}
        self.network, self.search, self.textures = network, search, textures
        self._training = training
        self._corrupt = tasks.draem(clean=0.5)
        textures.files()  # a wrong folder is told before training

    def phases(self) -> list[Phase]:
        train = phase(self._weights(), self._training, "train")
        if not self.search:
            return [train]
        scores = [c.scores for c in self.network.cells if isinstance(c, FusionCell) and c.scores]
        rate = self._training["lr"]
        players = [
            Player("weights", self._weights(), adam(rate)),
            Player("scores", list(scores), adam(3 * rate, betas=(0.5, 0.999), weight_decay=1e-3)),
        ]
        size = self._training["batch_size"]
        return [Phase("search", players, steps=self.search, batch_size=size), train]

    def _weights(self) -> list[nn.Module]:
        """Everything but the scores of a search."""
        net, cells = self.network, [c for c in self.network.cells if isinstance(c, FusionCell)]
        parts = [[c.nodes, c.out] for c in cells]
        return [net.branches, net.enter, net.head, *itertools.chain.from_iterable(parts)]

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        assert batch.target is not None
        n = batch.image.shape[1]
        clean = torch.cat([batch.image, batch.target], 1)
        texture = three_of_ten(self.textures.like(clean, batch.rng), batch.rng)
        made = self._corrupt(clean, texture, batch.rng, torch.ones_like(batch.foreground))
        self.network.searching = phase == "search"
        restored, logits = self.network((made.image[:, :n], made.image[:, n:]))
        self.network.searching = False
        terms = {"focal": focal(logits.softmax(1)[:, 1:], made.label > 0.5)}
        for name, found, wanted in zip(
            ("image", "target"), restored, (clean[:, :n], clean[:, n:]), strict=True
        ):
            terms[f"l2_{name}"] = F.mse_loss(found, wanted)
            terms[f"ssim_{name}"] = 1 - padded_ssim(found, wanted)
        return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        assert batch.target is not None
        restored, logits = self.network((batch.image, batch.target))
        anomaly = logits.softmax(1)[:, 1:]
        window = min(21, 2 * (min(anomaly.shape[2:]) // 2) - 1)
        smooth = F.avg_pool2d(anomaly, window, stride=1, padding=window // 2)
        return Maps(anomaly, smooth.flatten(1).amax(1), reconstruction=restored[0])


@register(
    "adnas_3d",
    paper="Long 2025",
    regime="paired-modality",
    presets={
        "laptop": {
            "size": 64, "width": 16, "fused": 32, "places": 16, "head": (32, 64), "steps": 500, "lr": 1e-3,
            "batch_size": 8,
        },
    },
    preprocess={"scaling": "minmax", "crop": "none"},
    tiny={
        "size": 32, "width": 8, "fused": 8, "places": 8, "head": (16, 16), "steps": 60, "lr": 3e-3,
        "batch_size": 8,
    },
    options=schedule(lr=1e-4, batch_size=8, epochs=700),
)  # fmt: skip
def adnas_3d(
    dims: int = 2,
    channels: int = 1,
    targets: int = 1,
    size: int = 256,
    width: int = 128,
    fused: int = 256,
    places: int = 64,
    head: tuple[int, ...] = (256, 1024),
    search: int = 0,
    cells: tuple[tuple[tuple[int, int, str], ...], ...] = CELLS,
    textures: str = "",
    **training: Unpack[Schedule],
) -> Method:
    """Two modalities restored by a branch each, whose features meet in cells that can be searched.

    Long et al., AAAI 2025 (3D-ADNAS), for colour and depth: each modality has a branch of EasyNet, an
    autoencoder without skips (widths 128 to 1024) that restores what a texture in Perlin outlines
    hides in both; early, middle and late features of both branches meet in three cells, the second and
    third of which take what the one before gave. A cell has two nodes; each picks two of its
    candidates and one operation: nothing, sum, attention, gated linear unit, joined with ReLU or with
    Mish (BM-NAS). Weights and choices are learnt in turns, the best choices kept and trained. A head
    of three layers gives the mask. Loss: squared error and structural similarity of both modalities +
    focal loss of the mask. Score: the mask's maximum after averaging over 21 x 21 pixels.

    Any registered pair of modalities will do; the second is the ``target`` of the cohort.

    Departures:
        details: its code wasn't released; those of EasyNet (networks, losses, score) and BM-NAS
            (cells, operations) were, without a training script of the first. Where features are taken,
            the grid on which they meet, the head's view of the late features, and all rates are ours.
        cells: what its search found is not at hand: ``cells`` is our choice, ``search`` finds others.
        search: choices learn from other batches than the weights, not from other images, and the
            weights go on from the search; links between cells are fixed.
        textures: as of ``draem``; those without a folder are made of the other images.

    Args:
        channels: of the first modality.
        targets: channels of the second.
        width: channels of a branch's first level.
        fused: channels of the cells.
        places: along each side of the grid on which features meet.
        head: channels of the head's hidden layers.
        search: updates of a search for the cells; 0 takes ``cells``.
        cells: of each the nodes, of each its two inputs, counted from 0, and its operation.
        textures: folder of images to plant, searched with its subfolders; empty for textures made of
            the batch.
    """
    if size % 16:
        raise ArgumentError(f"size {size} is no multiple of 16, which four halvings need.")
    chosen = None if search else tuple(tuple(cell) for cell in cells)
    network = Fused((channels, targets), width, fused, chosen, places, head)
    return ADNAS3D(network, search, Textures(textures), training)
