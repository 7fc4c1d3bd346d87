"""Networks that see how features differ from healthy prototypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.methods.features.common import (
    FILLED,
    PICTURE,
    RESNET18,
    TEST_RESNET,
    Trained,
    backbone_of,
    tapped,
)
from normscan.methods.schedule import phase, schedule
from normscan.methods.supervised.boundaries import transplanted
from normscan.methods.supervised.common import ill
from normscan.networks.backbones import Backbone
from normscan.networks.prototypical import PrototypicalResidual
from normscan.networks.together import gathered
from normscan.objectives.optimizers import still
from normscan.objectives.segmentation import focal
from normscan.registry import register
from normscan.synthesis import donors, labels, placement, shapes
from normscan.synthesis.corruption import Corruption
from normscan.synthesis.tasks import hosted

STAGES = ("layer1", "layer2", "layer3", "layer4")
BRIGHTEST = 100


class PrototypicalResiduals(Method):
    """A decoder of features and of their differences from whole healthy maps; see ``prn``.

    Args:
        backbone: frozen, with three stages and a coarsest one.
        network: to logits.
        prototypes: of each of the three.
        focal_weight: of the focal loss.
        training: the shared arguments.
    """

    met: Tensor
    gathered = ("prototypes0", "prototypes1", "prototypes2", "met")

    def __init__(
        self, backbone: Backbone, network: PrototypicalResidual, prototypes: int,
        focal_weight: float, training: Trained,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.network = backbone, network
        self._most, self._focal_weight, self._training = prototypes, focal_weight, training
        self._corrupt = Corruption(
            shapes.perlin(), placement.anywhere, donors.tiles, hosted(), labels.mask
        )
        for stage in range(3):
            self.register_buffer(f"prototypes{stage}", torch.zeros(0))
        self.register_buffer("met", torch.zeros(3, prototypes))

    def phases(self) -> list[Phase]:
        size = self._training["batch_size"]
        look = Phase("prototypes", [Player("network", [self.network], still)], epochs=1)
        # Named three times it gives three quarters of a batch.
        part = "healthy+healthy+healthy+anomalous"
        learn = phase(self.network, self._training, "residuals", part, keep="last")
        return [
            replace(look, batch_size=size), replace(learn, balanced=True, validate_every=0),
        ]  # fmt: skip

    def prototypes(self, stage: int) -> Tensor:
        """Whole maps (K, C, h, w); none before they are learnt."""
        found: Tensor = getattr(self, f"prototypes{stage}")
        return found

    def gather(self, features: list[Tensor]) -> None:
        """Let maps join the means that they are nearest to, the first ones as means of their own.

        Those of all processes, so that each has the same means.
        """
        for stage, maps in enumerate(features):
            for one in gathered(maps)[0]:
                known = self.prototypes(stage)
                if len(known) < self._most:
                    more = torch.cat([known, one[None]]) if len(known) else one[None].clone()
                    setattr(self, f"prototypes{stage}", more)
                    self.met[stage, len(more) - 1] = 1
                    continue
                near = int((known - one).flatten(1).square().sum(1).argmin())
                self.met[stage, near] += 1
                known[near] += (one - known[near]) / self.met[stage, near]

    def residual(self, stage: int, maps: Tensor) -> Tensor:
        """Squared differences (B, C, h, w) of maps from the nearest prototype of each."""
        known = self.prototypes(stage).to(maps)
        if not len(known):
            return maps.square()
        # Not by products of matrices, whose last bits hang on the batch.
        apart = [(known - one).flatten(1).square().sum(1).argmin() for one in maps]
        return (maps - known[torch.stack(apart)]).square()

    def logits(self, image: Tensor) -> Tensor:
        """(B, 1, H, W)."""
        *features, last = self.backbone(image).values()
        residuals = [self.residual(stage, maps) for stage, maps in enumerate(features)]
        result: Tensor = self.network(features, residuals, last)
        return result

    def planted(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and lesions: known ones, known ones put elsewhere, and textures in healthy ones."""
        image, lesion = transplanted(batch)
        made = self._corrupt(image, image.roll(1, 0), batch.rng, torch.ones_like(batch.foreground))
        chosen = (batch.rng.uniform((len(batch),)) < 1 / 3).to(image.device) & ~ill(batch)
        on = chosen[:, None, None, None]
        return torch.where(on, made.image, image), torch.where(on, made.region, lesion)

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        if phase == "prototypes":
            features = list(self.backbone(batch.image).values())[:-1]
            if torch.is_grad_enabled():
                self.gather([maps.detach() for maps in features])
            fused = self.network.first(features)
            return {"size": torch.stack([f.square().mean() for f in fused]).sum()}
        image, lesion = self.planted(batch)
        # Of an anomalous image whose lesion nobody drew no pixel is known.
        known = (~ill(batch) | lesion.flatten(1).any(1)).nonzero()[:, 0]
        return self.terms(self.logits(image)[known], lesion[known])

    def terms(self, logits: Tensor, lesion: Tensor) -> dict[str, Tensor]:
        """The terms for logits and lesions (B, 1, H, W)."""
        chance, truth = logits.sigmoid(), lesion.to(logits)
        far = F.smooth_l1_loss(chance, truth)
        return {"l1": far, "focal": self._focal_weight * 0.5 * focal(chance, lesion.bool(), 4.0)}

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        found = self.logits(batch.image).sigmoid()
        flat = found.flatten(1)
        return Maps(found, flat.topk(min(BRIGHTEST, flat.shape[1]), 1).values.mean(1))


@register(
    "prn",
    paper="Zhang 2023",
    regime="few-anomalies",
    preprocess=PICTURE,
    presets={
        "laptop": {
            "size": 128, "prototypes": 8, "batch_size": 8, "steps": 200, "lr": 1e-3,
            "preprocess": FILLED,
        },
    },
    tiny={
        "backbone": TEST_RESNET, "weights": "random", "size": 32, "prototypes": 2, "sizes": 2,
        "layers": 1, "batch_size": 8, "steps": 30, "lr": 2e-3, "preprocess": FILLED,
    },
    options=tapped(backbone=RESNET18, taps=STAGES)
    | schedule(lr=1e-4, weight_decay=1e-2, batch_size=48, epochs=700),
)  # fmt: skip
def prn(
    dims: int = 2,
    channels: int = 1,
    prototypes: int = 20,
    sizes: int = 4,
    layers: int = 3,
    focal_weight: float = 5.0,
    **options: Unpack[Trained],
) -> Method:
    """A network that sees how features differ from healthy prototypes (PRN).

    Zhang et al., CVPR 2023: of three stages of a frozen ResNet-18 whole maps are clustered into
    prototypes, a tenth as many as there are healthy images. Features and their squared difference
    from the nearest prototype are fused across scales, looked at by three layers of attention among
    patches of four sizes at once, fused again, and decoded together with the fourth stage to one
    logit for each pixel. The loss is smooth L1 of its sigmoid and the lesion, and five times the
    focal loss (exponent 4, weight 0.5). Half of the images are healthy, a quarter have textures in
    Perlin noise, a quarter are known anomalies or healthy images with a known lesion put into them.
    Adam 1e-4, decay 1e-2, batches of 48, 700 epochs. The map is the sigmoid, the score the mean of
    its 100 highest pixels. The article's code was never released: details are those of an unofficial
    port (xcyao00/PRNet), whose own figures are below the article's. It needs drawn lesions: an
    anomalous image without one is passed over.

    Departures:
        prototypes: means that single maps join one after the other in one pass (MacQueen), begun with
            the first ones; the port runs k-means to the end. Their number is an argument.
        lesions: turned, moved, resized, brighter, half of the known anomalies; the port draws three
            of eleven augmentations.
        textures: tiles of other images in another order; the port takes pictures of textures.
        epochs: of healthy and anomalous images as they come in the batches.

    Args:
        size: pixels along each axis, a multiple of 128 with four sizes of patches.
        taps: three stages with prototypes, each half as fine as the one before, and a coarsest one.
        prototypes: of each stage.
        sizes: of patches, the first as large as the grid, each half of the one before.
        layers: of attention.
        focal_weight: of the focal loss.
    """
    backbone = backbone_of(options, channels)
    sides = [options["size"] // stride for stride in backbone.strides]
    if len(sides) != 4 or sides[2] % 2 ** (sizes - 1) or options["size"] % backbone.strides[3]:
        multiple = backbone.strides[min(2, len(sides) - 1)] * 2 ** (sizes - 1)
        raise ArgumentError(
            f"size={options['size']}, taps={options['taps']}: prn looks at four stages, in patches of "
            f"{sizes} sizes. Use four taps and a size that is a multiple of {multiple}."
        )
    network = PrototypicalResidual(backbone.channels, sides, sizes, layers)
    return PrototypicalResiduals(backbone, network, prototypes, focal_weight, options)
