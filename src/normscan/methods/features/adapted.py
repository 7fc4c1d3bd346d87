"""Frozen features, adapted to what is healthy: to the centres of spheres, or against noise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps, Method, Phase, Player
from normscan.networks.aggregation import concatenated, patch_features, vectors
from normscan.networks.backbones import Backbone
from normscan.registry import register
from normscan.scores.neighbours import Neighbours


class CoordConv(nn.Module):
    """1 x 1 convolution that also sees where it is: two channels of -1 to 1 along the axes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs + 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        axes = [torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:]]
        places = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1)
        result: Tensor = self.conv(torch.cat([x, places], dim=1))
        return result


class CentreBank(nn.Module):
    """A centre for each position, the running mean over batches, or fewer by k-means.

    Args:
        positions: of the feature map.
        dim: of the vectors.
        compression: positions to a centre; 1 keeps all of them.
    """

    def __init__(self, positions: int, dim: int, compression: int = 1) -> None:
        super().__init__()
        self.compression = compression
        self.means = nn.Parameter(torch.zeros(positions, dim))
        self.few: Tensor
        self.register_buffer("few", torch.zeros(0, dim))

    def pull(self, x: Tensor) -> Tensor:
        """A loss for vectors (B, positions, dim): a step of 1 / (step + 1) makes the running mean."""
        return 0.5 * (x.detach().float().mean(0) - self.means).square().sum()

    @torch.no_grad()
    def compress(self) -> None:
        """Put the centres of k-means in the place of the means, once."""
        if self.compression == 1 or len(self.few):
            return
        from sklearn.cluster import KMeans

        points = self.means.double().cpu().numpy()
        clusters = max(1, len(points) // self.compression)
        found = KMeans(clusters, n_init=1, max_iter=3000, random_state=0).fit(points)
        self.few = torch.from_numpy(found.cluster_centers_).to(self.means)

    def nearest(self, x: Tensor, k: int) -> Tensor:
        """Squared distances (B, n, k) of vectors (B, n, dim) to the nearest centres, in order."""
        centres = self.few if len(self.few) else self.means
        return Neighbours(centres, "float32")(x.flatten(0, 1), k).unflatten(0, x.shape[:2])


class Radius(nn.Module):
    """The radius of the spheres around all centres."""

    def __init__(self, start: float = 1e-5) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(start))

    def forward(
        self, distances: Tensor, inside: int, nu: float, margin: float
    ) -> dict[str, Tensor]:
        """The nearest centres pull a vector into their spheres, the next ones push it out.

        Args:
            distances: (..., k) squared, ascending.
            inside: how many pull.
            nu: divides both terms.
            margin: of the push.
        """
        square = self.value.square()
        pull = (distances[..., :inside] - square).clamp_min(0).mean() / nu
        push = (square - distances[..., inside:] - margin).clamp_min(0).mean() / nu
        return {"attraction": pull, "repulsion": push}


def softmin_score(distances: Tensor) -> Tensor:
    """Distance to the nearest centre times its softmin among the nearest: (..., k) to (...)."""
    return F.softmin(distances, dim=-1)[..., 0] * distances[..., 0]


class CoupledHyperspheres(Method):
    """Features pulled to centres of healthy ones; see ``cfa``."""

    def __init__(
        self, backbone: Backbone, size: int, dim_compression: int, centre_compression: int,
        neighbours: int, negatives: int, nu: float, margin: float, lr: float, weight_decay: float,
        batch_size: int, epochs: int, steps: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = backbone
        total = sum(backbone.channels)
        dim = max(1, total // dim_compression)
        self.descriptor = CoordConv(total, dim)
        self.bank = CentreBank((-(-size // backbone.strides[0])) ** 2, dim, centre_compression)
        self.radius = Radius()
        self.neighbours, self.negatives, self.nu, self.margin = neighbours, negatives, nu, margin
        self.lr, self.weight_decay = lr, weight_decay
        self.batch_size, self.epochs, self.steps = batch_size, epochs, steps

    def phases(self) -> list[Phase]:
        def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                parameters, lr=self.lr, weight_decay=self.weight_decay, amsgrad=True
            )

        # Gradient descent whose rate falls as 1 / n is the running mean, and so the centres are in
        # checkpoints and are shared by processes as all that is learnt.
        centres = Player(
            "centres",
            [self.bank],
            lambda p: torch.optim.SGD(p, lr=1.0),
            schedule=lambda step, steps: 1 / (step + 1),
        )
        network = Player("network", [self.descriptor, self.radius], adamw)
        return [
            Phase("centres", [centres], epochs=1, batch_size=self.batch_size),
            Phase(
                "adapt", [network], steps=self.steps, epochs=self.epochs,
                batch_size=self.batch_size, validate_every="epoch",
            ),
        ]  # fmt: skip

    def described(self, x: Tensor) -> Tensor:
        """Adapted features (B, dim, h, w)."""
        with torch.no_grad():
            features = concatenated(list(self.backbone(x).values()), pooled=3)
        result: Tensor = self.descriptor(features)
        return result

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        points = vectors(self.described(batch.image)).float()
        # Squared distances as a difference of large numbers need all digits.
        with torch.autocast(points.device.type, enabled=False):
            if phase == "centres":
                return {"running_mean": self.bank.pull(points)}
            self.bank.compress()
            distances = self.bank.nearest(points, self.neighbours + self.negatives)
            terms: dict[str, Tensor] = self.radius(distances, self.neighbours, self.nu, self.margin)
            return terms

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        described = self.described(batch.image)
        distances = self.bank.nearest(vectors(described), self.neighbours).sqrt()
        scores = softmin_score(distances)
        return Maps(map=scores.reshape(len(batch), 1, *described.shape[2:]))


@register(
    "cfa",
    paper="Lee 2022",
    dims=(2,),
    presets={"laptop": {"backbone": "resnet18.tv_in1k", "size": 128, "steps": 200}},
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64,
        "taps": ("layer1", "layer2"), "steps": 24, "postprocess": ("smooth=1",),
    },
)  # fmt: skip
def cfa(
    dims: int = 2,
    channels: int = 1,
    size: int = 224,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = ("layer1", "layer2", "layer3"),
    weights: str = "hub",
    dim_compression: int = 1,
    centre_compression: int = 1,
    neighbours: int = 3,
    negatives: int = 3,
    nu: float = 1e-3,
    margin: float = 0.1,
    lr: float = 1e-3,
    weight_decay: float = 5e-4,
    batch_size: int = 4,
    epochs: int = 30,
    steps: int | None = None,
) -> Method:
    """Features adapted to coupled spheres around healthy centres (CFA).

    The stages of a frozen network, averaged over 3 x 3 cells and joined, pass a 1 x 1 convolution
    that sees its position. The centres are the means of its first output at each position. It
    learns to bring each vector into the spheres of its three nearest centres and out of those of
    the next three; the radius is learnt, too. The map is the distance to the nearest centre times
    its softmin among the nearest, smoothed, the image score its largest value. Lee, Lee and Song,
    IEEE Access 2022.

    The weights of the last epoch are kept, where the released code reports the best on the test
    set, and scores aren't stretched to 0..1 over the test set, which the order doesn't need. The
    article resizes to 256 and crops to 224 pixels; here the foreground fills 224. Both terms of
    the loss take squared distances and the map takes plain ones, as in the released code.

    Args:
        size: pixels along each axis.
        backbone: timm name with the tag of its weights.
        taps: stages whose features are used, the finest first.
        dim_compression: feature channels to a number of an adapted vector (the article's gamma_d).
        centre_compression: positions to a centre, by k-means (gamma_c); 1 for none.
        neighbours: nearest centres that pull, and that the softmin runs over.
        negatives: next centres that push.
        nu: divides the loss.
        margin: of the push, in squared distance (alpha).
        lr: learning rate of AdamW with AMSGrad.
        weight_decay: of AdamW.
        batch_size: images in an update.
        epochs: passes over the training images, after one for the centres.
        steps: number of updates instead of ``epochs``.
    """
    network = Backbone(backbone, taps, weights, channels=channels)
    return CoupledHyperspheres(
        network, size, dim_compression, centre_compression, neighbours, negatives, nu, margin, lr,
        weight_decay, batch_size, epochs, steps,
    )  # fmt: skip


class FeatureDiscriminator(Method):
    """Adapted patches told from noisy ones; see ``simplenet``."""

    def __init__(
        self, backbone: Backbone, dim: int, hidden: int, noise: float, margin: float,
        adaptor_lr: float, lr: float, weight_decay: float, batch_size: int, epochs: int,
        steps: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone, self.dim, self.noise, self.margin = backbone, dim, noise, margin
        self.adaptor = nn.Linear(dim, dim)
        self.discriminator = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip
        for module in (self.adaptor, *self.discriminator):
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
        self.adaptor_lr, self.lr, self.weight_decay = adaptor_lr, lr, weight_decay
        self.batch_size, self.epochs, self.steps = batch_size, epochs, steps

    def phases(self) -> list[Phase]:
        slow = {id(p) for p in self.adaptor.parameters()}

        # Adam's own weight decay is a term of the loss, so AdamW can update both at once.
        def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            known = list(parameters)
            adaptor = [p for p in known if id(p) in slow]
            rest = [p for p in known if id(p) not in slow]
            return torch.optim.AdamW(
                [
                    {"params": adaptor, "lr": self.adaptor_lr, "weight_decay": 0.01},
                    {"params": rest, "lr": self.lr, "weight_decay": 0.0},
                ]
            )

        player = Player("network", [self.adaptor, self.discriminator], optimizer)
        return [
            Phase(
                "discriminate", [player], steps=self.steps, epochs=self.epochs,
                batch_size=self.batch_size, validate_every="epoch",
            )
        ]  # fmt: skip

    def patches(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Adapted patches (B, h * w, dim) and their grid (h, w)."""
        with torch.no_grad():
            features = list(self.backbone(x).values())
            joined = patch_features(features, 3, self.dim, self.dim)
        return self.adaptor(joined), (features[0].shape[-2], features[0].shape[-1])

    def loss(self, batch: Batch, phase: str, player: str) -> dict[str, Tensor]:
        real = self.patches(batch.image)[0]
        fake = real + self.noise * batch.rng.normal(real.shape).to(real)
        both = torch.cat([real, fake]).flatten(0, 1)  # one batch norm for both
        of_real, of_fake = self.discriminator(both).chunk(2)
        decay = sum(p.square().sum() for p in self.discriminator.parameters())
        return {
            "real": (self.margin - of_real).clamp_min(0).mean(),
            "noisy": (self.margin + of_fake).clamp_min(0).mean(),
            "weight_decay": 0.5 * self.weight_decay * decay,
        }

    @torch.no_grad()
    def maps(self, batch: Batch) -> Maps:
        patches, grid = self.patches(batch.image)
        told: Tensor = self.discriminator(patches.flatten(0, 1))
        scores = (self.margin - told).reshape(len(batch), 1, *grid)
        return Maps(map=scores, score=scores.flatten(1).amax(1))


@register(
    "simplenet",
    paper="Liu 2023",
    dims=(2,),
    presets={
        "laptop": {
            "backbone": "resnet18.tv_in1k", "size": 128, "dim": 384, "hidden": 256, "steps": 400,
            "lr": 1e-3, "adaptor_lr": 5e-4,
            # The least that held-out patches are told from after so few updates: with 0.015 they
            # are at 0.5 to 0.7 (AUROC), and nothing has been learnt.
            "noise": 0.05,
        },
    },
    postprocess=("smooth=4",),
    reduction="max",
    preprocess={"scaling": "percentile"},
    tiny={
        "backbone": "resnet18.tv_in1k", "weights": "random", "size": 64,
        "taps": ("layer1", "layer2"), "dim": 128, "hidden": 128, "noise": 0.2, "lr": 2e-3,
        "steps": 60, "postprocess": ("smooth=1",),
    },
)  # fmt: skip
def simplenet(
    dims: int = 2,
    channels: int = 1,
    size: int = 288,
    backbone: str = "wide_resnet50_2.tv_in1k",
    taps: tuple[str, ...] = ("layer2", "layer3"),
    weights: str = "hub",
    dim: int = 1536,
    hidden: int = 1024,
    noise: float = 0.015,
    margin: float = 0.5,
    adaptor_lr: float = 1e-4,
    lr: float = 2e-4,
    weight_decay: float = 1e-5,
    batch_size: int = 8,
    epochs: int = 160,
    steps: int | None = None,
) -> Method:
    """A discriminator of healthy patch features and the same with noise (SimpleNet).

    Patch features as in PatchCore, a linear layer that adapts them, and a small network that
    learns to tell them from themselves with Gaussian noise added. What it takes for noise is
    anomalous; the map is the margin minus its output, smoothed, the image score the highest patch's.
    Liu et al., CVPR 2023.

    40 times 4 passes as in the released code. The last weights are kept; the code keeps the epoch
    that is best on the test set, without which its results fall. The adaptor's weight decay is
    AdamW's own 0.01, as in the released code. The article's score has no margin in it, a constant which puts
    healthy patches near 0 and orders alike. The article resizes to 329 and crops to 288 pixels; here the
    foreground fills 288.

    Args:
        size: pixels along each axis.
        backbone: timm name with the tag of its weights.
        taps: stages whose features are used, the finest first.
        dim: numbers in a patch's vector.
        hidden: units of the discriminator.
        noise: standard deviation of the noise on adapted features.
        margin: of the hinge on both sides.
        adaptor_lr: learning rate of the adaptor (AdamW).
        lr: learning rate of the discriminator (Adam).
        weight_decay: of the discriminator, as a term of the loss.
        batch_size: images in an update.
        epochs: passes over the training images.
        steps: number of updates instead of ``epochs``.
    """
    network = Backbone(backbone, taps, weights, channels=channels)
    return FeatureDiscriminator(
        network, dim, hidden, noise, margin, adaptor_lr, lr, weight_decay, batch_size, epochs, steps
    )
