"""Patches of a frozen transformer beside a memory of healthy ones, or a mixture of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack, get_type_hints

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.features.common import (
    FILLED,
    LITE0_STAGES,
    PICTURE,
    SMOOTH,
    TINY,
    Tapped,
    backbone_of,
    lite0,
    tapped,
)
from normscan.methods.features.memory import Bank, check_room, vectors_of
from normscan.networks.aggregation import concatenated, vectors
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.rng import Rng
from normscan.scores.dpmm import DirichletMixture, Distance
from normscan.scores.neighbours import Search
from normscan.signatures import Options


def unit_patches(backbone: Backbone, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch features of length 1, (B, h * w, C), and their grid (h, w)."""
    with torch.no_grad():
        features = concatenated(list(backbone(x).values()))
        grid = (features.shape[-2], features.shape[-1])
        return F.normalize(vectors(features), dim=2), grid


def tail_mean(values: Tensor, share: float = 0.01) -> Tensor:
    """Mean of the largest values in each row of (B, n); at least of one."""
    n = max(1, int(share * values.shape[1]))
    return values.topk(n, dim=1).values.mean(1)


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Images (B, C, H, W) turned counter-clockwise about their middle; the border is reflected."""
    if degrees % 360 == 0:
        return x
    angle = torch.deg2rad(torch.tensor(degrees))
    c, s = float(angle.cos()), float(angle.sin())
    height, width = x.shape[2:]
    # From places in the result to places in the image, both in -1..1 along each axis.
    turn = torch.tensor([[c, -s * height / width, 0], [s * width / height, c, 0]]).to(x)
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def pca_foreground(tokens: Tensor, grid: tuple[int, int], threshold: float = 10.0) -> Tensor:
    """Patches of the object by the first principal component of an image's tokens (AnomalyDINO).

    The component's sign is the one that keeps more than 35 % of the middle; the mask is dilated
    and closed by 3 x 3.

    Args:
        tokens: (h * w, C), not normalised.
        grid: (h, w).
        threshold: of the component.

    Returns:
        (h * w,) bool.
    """
    centred = tokens - tokens.mean(0)
    axis = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    component = (centred @ axis).reshape(grid)
    mask = component > threshold
    (top, bottom), (left, right) = ((int(0.2 * n), int(0.8 * n)) for n in grid)
    if mask[top:bottom, left:right].float().mean() <= 0.35:
        mask = -component > threshold
    wide = mask.float()[None, None]
    for _ in range(2):
        wide = F.max_pool2d(wide, 3, 1, 1)
    return (-F.max_pool2d(-wide, 3, 1, 1)).flatten() > 0


@dataclass(frozen=True)
class References:
    """The images whose patches a memory holds.

    Attributes:
        shots: how many, drawn at random; None for all.
        rotations: of each, evenly over the circle; 1 for none.
        largest: patches at most, a random choice.
    """

    shots: int | None = 16
    rotations: int = 8
    largest: int = 1_000_000


class AnomalyDINO(Method):
    """Nearest neighbour of unit patches in a memory; see ``anomaly_dino``."""

    fitted = ("bank.vectors", "bank.sizes")

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        references: References,
        bank: Bank,
        masked: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.size, self.bank, self.masked = backbone, size, bank, masked
        self.references = references

    def _references(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Rng]]:
        """Images for the memory, and a source of randomness: all, or so many at random."""
        shots = self.references.shots
        if shots is None:
            yield from ((batch.image, batch.rng) for batch in batches)
            return
        kept: list[tuple[float, Tensor]] = []
        rng = Rng(0)
        for batch in batches:
            rng = batch.rng
            kept += zip(rng.uniform((len(batch),)).tolist(), batch.image, strict=True)
            kept = sorted(kept, key=lambda pair: pair[0])[:shots]
        for start in range(0, len(kept), 16):
            yield torch.stack([image for _, image in kept[start : start + 16]]), rng

    def need(self, samples: int) -> str:
        """Memory or disk of the patches of all references."""
        wanted = self.references
        images = samples if wanted.shots is None else min(samples, wanted.shots)
        cells = (-(-self.size // self.backbone.strides[0])) ** 2
        return self.bank.need(images * wanted.rotations * cells, wanted.largest)

    def fit(self, batches: Iterable[Batch]) -> None:
        self.bank.keep(self._patches(self._references(batches)))

    @property
    def merges(self) -> bool:
        return self.references.shots is None  # else few are drawn from all

    def merge(self, others: Sequence[Mapping[str, Tensor]], rng: Rng) -> None:
        self.bank.merge(vectors_of(others), self.references.largest, rng, chosen=False)

    def update(self, batches: Iterable[Batch]) -> None:
        every = ((batch.image, batch.rng) for batch in batches)
        self.bank.extend(self._patches(every), self.references.largest)

    def _patches(self, references: Iterable[tuple[Tensor, Rng]]) -> Tensor:
        """Patches of the images and of their rotations."""
        memory = self.bank.reservoir(self.references.largest)
        rotations = self.references.rotations
        for images, rng in references:
            for i in range(rotations):
                turned = rotated(images, i * 360 / rotations)
                memory.add(unit_patches(self.backbone, turned)[0].flatten(0, 1), rng)
        if not memory.seen:
            raise ArgumentError("anomaly_dino needs at least one training image.")
        return memory.finish()

    def _foreground(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        tokens = vectors(concatenated(list(self.backbone(x).values())))
        return torch.stack([pca_foreground(t, grid) for t in tokens])

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, grid = unit_patches(self.backbone, batch.image)
        scores = self.bank.nearest(patches.flatten(0, 1)).reshape(patches.shape[:2]) / 2
        if self.masked:
            scores = scores * self._foreground(batch.image, grid)
        return Maps(map=scores.reshape(-1, 1, *grid), score=tail_mean(scores))


# Proportions stay and nothing is cut off.
PADDED: dict[str, Any] = {**PICTURE, "fit": "pad"}
DINOV2 = tapped(size=448, backbone="vit_small_patch14_dinov2.lvd142m", taps=("norm",))


_LAPTOP = {
    "size": 224, "shots": 64, "rotations": 1, "largest": 20_000, "preprocess": FILLED,
}  # fmt: skip


@register(
    "anomaly_dino",
    paper="Damm 2025",
    dims=(2,),
    presets={
        "full_shot": {"shots": None, "rotations": 1},
        "laptop": _LAPTOP,
        "lite0": lite0({**_LAPTOP, "size": 128}, LITE0_STAGES[3:]),
    },
    postprocess=SMOOTH,
    preprocess=PADDED,
    # Cosines of a random network of rectified linear units can't tell how bright a patch is.
    tiny={
        **TINY, "taps": ("layer1",), "shots": None, "rotations": 1,
        "postprocess": ("smooth=1", "erode=4"),
    },
    options=DINOV2,
)  # fmt: skip
def anomaly_dino(
    dims: int = 2,
    channels: int = 1,
    shots: int | None = 16,
    rotations: int = 8,
    masked: bool = False,
    largest: int = 1_000_000,
    memory: float = 4.0,
    search: Search = "auto",
    **options: Unpack[Tapped],
) -> Method:
    """Nearest neighbour in a memory of patches from a few healthy images (AnomalyDINO).

    Damm et al., WACV 2025: patch tokens of a frozen DINOv2 ViT-S/14, the smaller edge of the picture
    at 448 pixels, are brought to length 1; the memory holds those of 1 to 16 reference images, or of
    all, and of their 8 rotations. A patch's score is its cosine distance to the nearest of them, the
    image's the mean of its highest 1 % of patches. 16 random training images are its largest few-shot
    setting; the preset ``full_shot`` takes all of them, unrotated. It learns from healthy images
    alone, whatever their number, so its regime is ``healthy``.

    Departures:
        grid: a square that the longer edge fills, padded; there it is as long as the picture.
        rotations: after resizing, the border reflected; there before it.
        mask: that of the object, which the article uses for some objects only, is off.
        positions: timm interpolates their code with antialiasing and without Meta's offset of 0.1,
            which differs by 0.05 of the height of waves of 18.5 patches; at 518 pixels by nothing.
        dilation: of the mask in the plane; the release dilates the list of all patches.
        test batches: their mutual scores (zero-shot) are left out.

    Args:
        size: pixels along each axis, a multiple of the patch.
        backbone: timm name with the tag of its weights, or ``hf:`` and one of transformers.
        taps: places whose features are joined; ``norm`` is a transformer's last.
        shots: reference images (slices of volumes), drawn at random; None for all.
        rotations: of each reference, evenly over the circle; 1 for none.
        masked: set patches outside the object to 0, which the first principal component finds.
        largest: patches in the memory at most, a random choice; 1.5 GB per million.
        memory: GiB that the patches may take; more lie on disk.
        search: of the nearest, as of ``patchcore``.
    """
    check_room("anomaly_dino", memory, largest)
    backbone = backbone_of(options, channels)
    bank = Bank(sum(backbone.channels), search, memory)
    # Something to look at before it is fitted.
    bank.vectors = F.normalize(torch.randn(1, sum(backbone.channels)), dim=1)
    references = References(shots, rotations, largest)
    return AnomalyDINO(backbone, options["size"], references, bank, masked)


class Updates(TypedDict):
    """The training of ``anomalydino_dpmm``."""

    rate: float
    batch_size: int
    epochs: int


class Mixed(Tapped, Updates):
    """The arguments of ``tapped`` and the training of ``anomalydino_dpmm``."""


UPDATES = Options(
    get_type_hints(Updates),
    {"rate": 0.2, "batch_size": 12, "epochs": 40},
    {
        "rate": "weight of a new batch in the running averages.",
        "batch_size": "images in an update.",
        "epochs": "passes over the training images.",
    },
)


class PatchMixture(Method):
    """Mixture model of unit patches; see ``anomalydino_dpmm``."""

    def __init__(
        self, backbone: Backbone, mixture: DirichletMixture, distance: Distance, updates: Updates
    ) -> None:
        super().__init__()
        self.backbone, self.mixture, self.distance = backbone, mixture, distance
        self._training = updates

    def phases(self) -> list[Phase]:
        rate = self._training["rate"]
        player = Player(
            "mixture",
            [self.mixture],
            lambda p: torch.optim.SGD(p, lr=rate),
            # An average of the first batches only, without what was there before them.
            schedule=lambda step, steps: 1 / (1 - (1 - rate) ** (step + 1)),
        )
        return [
            Phase(
                "mixture", [player], epochs=self._training["epochs"],
                batch_size=self._training["batch_size"], validate_every="epoch", keep="best",
            )
        ]  # fmt: skip

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        points = unit_patches(self.backbone, batch.image)[0].flatten(0, 1).float()
        with torch.autocast(points.device.type, enabled=False):
            if not self.mixture.training:
                return {"nll": self.mixture.distance(points, "nll").mean()}
            if not self.mixture.updates:
                self.mixture.start(points, batch.rng)
            return {"statistics": self.mixture.loss(points)}

    def fit(self, batches: Iterable[Batch]) -> None:
        """Keep the components that have learnt something."""
        self.mixture.prune()

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, grid = unit_patches(self.backbone, batch.image)
        scores = self.mixture.distance(patches.flatten(0, 1), self.distance)
        scores = scores.reshape(patches.shape[:2])
        return Maps(map=scores.reshape(-1, 1, *grid), score=tail_mean(scores))


_MIXED_LAPTOP = {"size": 224, "components": 100, "epochs": 5, "preprocess": FILLED}


@register(
    "anomalydino_dpmm",
    paper="Schulthess 2025",
    dims=(2,),
    presets={
        "laptop": _MIXED_LAPTOP,
        "lite0": lite0({**_MIXED_LAPTOP, "size": 128}, LITE0_STAGES[3:]),
    },
    preprocess=PADDED,
    tiny={**TINY, "taps": ("layer2",), "components": 40, "epochs": 1, "postprocess": ("erode=4",)},
    options=DINOV2 | UPDATES,
)
def anomalydino_dpmm(
    dims: int = 2,
    channels: int = 1,
    components: int = 500,
    covariance: Literal["diag", "full"] = "diag",
    regularisation: float | None = None,
    distance: Literal["cosine", "mahalanobis", "euclidean", "nll"] = "cosine",
    **options: Unpack[Mixed],
) -> Method:
    """Distance of patches to the components of a Dirichlet-process mixture of healthy ones.

    Schulthess and Konukoglu, MICCAI 2025: the unit patch tokens of a frozen DINOv2 are described by a
    mixture of at most 500 Gaussians that decides itself how many it needs; a few means replace the
    memory of AnomalyDINO. Learnt by online expectation maximisation, 40 passes in batches of 12; the
    state with the least negative log likelihood of healthy validation patches is kept. The article
    names several distances to the mixture, ``cosine`` the cheapest.

    Departures:
        means: random patches of the first batch; there its first ones.
        averages: corrected for their start at zero, which leaves means and covariances the same.
        concentration: follows what was learnt before a batch; there what was learnt with it.
        components: those of less weight than 1e-6 are dropped in the end.
        score: the mean of the highest 1 % of patches as in AnomalyDINO is our choice.
        grid, positions: as of ``anomaly_dino``.

    Train it in one process: several would begin apart.

    Args:
        size: pixels along each axis, a multiple of the patch.
        backbone: timm name with the tag of its weights, or ``hf:`` and one of transformers.
        taps: places whose features are joined; ``norm`` is a transformer's last.
        components: of the mixture at most.
        covariance: of each component, ``diag`` or ``full``.
        regularisation: added to the variances; None for 1e-6 (``diag``) or 1e-3 (``full``).
        distance: of a patch to the mixture: ``cosine`` or ``euclidean`` to the nearest mean,
            ``mahalanobis``, or the negative log likelihood ``nll``.
    """
    backbone = backbone_of(options, channels)
    if regularisation is None:
        regularisation = 1e-6 if covariance == "diag" else 1e-3
    mixture = DirichletMixture(sum(backbone.channels), components, covariance, regularisation)
    return PatchMixture(backbone, mixture, distance, options)
