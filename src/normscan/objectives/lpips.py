"""LPIPS (Zhang et al. 2018) as a map: how unlike two images look to a network, place by place."""

from __future__ import annotations

from importlib import metadata
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import WeightsError
from normscan.networks.backbones import Backbone, comes_from_state, read_weights
from normscan.networks.sources import PACKAGED, packaged
from normscan.networks.taps import declare_operators

FILE = "squeezenet1_1-b8a52dc0.pth"
HEADS = "lpips/weights/v0.1/squeeze.pth"
CHANNELS = (64, 128, 256, 384, 384, 512, 512)
ENDS = (0, 2, 5, 8, 10, 11, 12, 13)


def _heads() -> dict[str, Tensor]:
    """The learnt weights of the channels, from the package ``lpips``, which isn't imported."""
    try:
        return read_weights(Path(str(metadata.distribution("lpips").locate_file(HEADS))), "LPIPS")
    except metadata.PackageNotFoundError as error:
        raise WeightsError(
            "the package lpips is not installed, which holds the channel weights of LPIPS: pip "
            "install lpips, or normscan[weights]. Or take --perceptual random for a dry run."
        ) from error


class SpatialLPIPS(nn.Module):
    """Weighted squared differences of normalised features, enlarged to the image and summed.

    Args:
        weights: path of torchvision's ``squeezenet1_1`` state dict, with which the channels weigh as
            the package ``lpips`` learnt it; ``pip:NAME`` for the network of a package and equal
            weights, which isn't LPIPS itself but needs no file; ``random`` for tests.

    Raises:
        WeightsError: no such file or package; says what to fetch.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.backbone: Backbone | None = None
        if weights.startswith("pip:"):
            known = PACKAGED.get(weights.removeprefix("pip:"))
            network, taps = (known.network, known.taps) if known else ("", ())
            packaged(weights, network)  # names the known ones where this isn't one
            self.backbone = Backbone(network, taps, weights)
        else:
            self._squeeze(weights)
        self.requires_grad_(False).train(False)

    def train(self, mode: bool = True) -> SpatialLPIPS:
        """Stay in evaluation mode."""
        return super().train(False)

    def _squeeze(self, weights: str) -> None:
        declare_operators()
        from torchvision.models import squeezenet1_1  # type: ignore[import-untyped]

        with torch.random.fork_rng(devices=[]):
            self.slices: nn.Sequential = squeezenet1_1(weights=None).features
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in CHANNELS)
        shift, scale = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        for name, values in (("shift", shift), ("scale", scale)):
            buffer = torch.tensor(values).reshape(1, 3, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        if weights == "random":
            for head in self.heads.parameters():
                nn.init.constant_(head, 1 / head.shape[1])
        elif not comes_from_state():
            self._load(weights)

    def _load(self, weights: str) -> None:
        if not Path(weights).is_file():
            raise WeightsError(
                f"there is no weights file {weights}. LPIPS takes torchvision's SqueezeNet 1.1: fetch "
                f"https://download.pytorch.org/models/{FILE} on a machine with access and give its "
                "path: --perceptual PATH. Or --perceptual pip:efficientnet-lite0, a stand-in that "
                "pip brings (normscan[weights])."
            )
        state, wanted = read_weights(Path(weights), "squeezenet1_1"), self.slices.state_dict()
        given = {k: state.get(f"features.{k}") for k in wanted}
        if any(v is None or v.shape != wanted[k].shape for k, v in given.items()):
            raise WeightsError(
                f"{weights} doesn't hold the features of torchvision's squeezenet1_1."
            )
        self.slices.load_state_dict({k: v for k, v in given.items() if v is not None})
        learnt = _heads()
        for i, head in enumerate(self.heads):
            head.load_state_dict({"weight": learnt[f"lin{i}.model.1.weight"]})

    def features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images (N, 3, H, W) from -1 to 1."""
        if self.backbone is not None:
            return list(self.backbone((x + 1) / 2).values())
        x, found = (x - self.shift) / self.scale, []
        for start, end in pairwise(ENDS):
            x = self.slices[start:end](x)
            found.append(x)
        return found

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The map (B, 1, H, W) of two batches (B, C, H, W) from -1 to 1; channels are averaged."""
        shape = a.shape
        a, b = (x.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1) for x in (a, b))
        total = torch.zeros_like(a[:, :1])
        for i, (f, g) in enumerate(zip(self.features(a), self.features(b), strict=True)):
            f, g = (y / (y.square().sum(1, keepdim=True).sqrt() + 1e-10) for y in (f, g))
            apart = (f - g).square()
            layer = apart.sum(1, keepdim=True) if self.backbone else self.heads[i](apart)
            total = total + F.interpolate(layer, shape[2:], mode="bilinear", align_corners=False)
        return total.unflatten(0, shape[:2]).mean(1)
