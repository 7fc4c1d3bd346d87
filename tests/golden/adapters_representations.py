"""What the records of systems on whole-image representations compare beside parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Maps
from normscan.methods.features.aggregated import PrototypeMemory
from normscan.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, import_timm
from normscan.objectives.contrastive import nt_xent
from normscan.objectives.deviation import deviation_loss
from normscan.scores.slices import SliceGaussians
from tests.golden.fill import fill, grain, images
from tests.golden.records import Check, batch_of


def trained_on(check: Check, n: int) -> Batch:
    """So many images by the record's rule, to fit closed forms to."""
    image = images(n, *check.shape[1:], rule=check.rule)
    batch = batch_of(check)
    return replace(batch, image=image, foreground=torch.ones_like(image[:, :1], dtype=torch.bool))


# --- contrast


def contrast_of_mirrored(method: Any, check: Check) -> Tensor:
    """The loss of images and mirrored ones, each batch with its own statistics."""
    image = batch_of(check).image
    a, b = (method.train().head(method.encoder(x)) for x in (image, image.flip(-1)))
    return nt_xent(a, b, method.temperature).detach().reshape(1)


def parameters_in_all(method: Any, check: Check) -> Tensor:
    return torch.tensor([float(sum(p.numel() for p in method.parameters()))])


def fitted_score(method: Any, check: Check) -> Tensor:
    """The score after a fit to 24 images."""
    method.fit([trained_on(check, 24)])
    return method.maps(batch_of(check)).score


def fitted_map(method: Any, check: Check) -> Tensor:
    method.fit([trained_on(check, 24)])
    return method.maps(batch_of(check)).map


# --- deep infomax and deviations


def code(method: Any, check: Check) -> Tensor:
    return method.codes(batch_of(check).image)[0]


def judged(method: Any, check: Check) -> tuple[Tensor, Tensor]:
    """Logits of the whole and of the places."""
    return method.judges(*method.codes(batch_of(check).image))


def prior(method: Any, check: Check) -> Tensor:
    return method.prior(code(method, check))


def tripled_deviation(method: Any, check: Check) -> Tensor:
    """The loss of three times the scores, the second image anomalous."""
    score = 3 * method.maps(batch_of(check)).score
    drawn = grain((method.draws,))
    anomalous = torch.tensor([False, True, False])
    return deviation_loss(score, anomalous, drawn, method.margin).mean().reshape(1)


# --- a memory of all images


def _memory(method: Any) -> tuple[PrototypeMemory, Tensor, Tensor]:
    """A memory of 20 vectors, four tenths of them anchors; codes and their numbers."""
    memory = PrototypeMemory(6, 0.1, 0.5, 3).double()
    every = F.normalize(grain((26, 6)), dim=1)
    memory.place(every[:20], torch.arange(20))
    memory.vectors = F.normalize(grain((20, 6)), dim=1)
    memory.discover(0.4)
    return memory, every[20:].requires_grad_(), torch.tensor([0, 3, 7, 11, 15, 19])


def anchors(method: Any, check: Check) -> Tensor:
    return _memory(method)[0].anchor.nonzero()[:, 0].double()


def aggregation(method: Any, check: Check) -> Tensor:
    memory, codes, index = _memory(method)
    return memory.loss(codes, index).detach().reshape(1)


def aggregation_gradient(method: Any, check: Check) -> Tensor:
    memory, codes, index = _memory(method)
    memory.loss(codes, index).backward()
    assert codes.grad is not None
    return codes.grad


def moved_memory(method: Any, check: Check) -> Tensor:
    memory, codes, index = _memory(method)
    memory.move(codes, index)
    return memory.vectors


def angles(method: Any, check: Check) -> Tensor:
    memory, codes, index = _memory(method)
    memory.move(codes, index)
    return memory.distance(codes, 5)


@torch.no_grad()
def network_of_centred(method: Any, check: Check) -> Any:
    """What the network makes of images in -1..1."""
    return method.network(2 * batch_of(check).image - 1)


# --- masked images


class SmallBeit(nn.Module):
    """A BEiT of two blocks, of which the method's backbone is one by another name."""

    def __init__(self, rule: str) -> None:
        super().__init__()
        import_timm()
        from timm.models.beit import Beit

        self.network = Beit(
            img_size=64, patch_size=16, embed_dim=48, depth=2, num_heads=3, init_values=0.1,
            use_abs_pos_emb=False, use_rel_pos_bias=True, num_classes=0,
        ).double()  # fmt: skip
        fill(self.network, rule)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        tokens = self.network.forward_features(2 * x - 1)
        return {"pooled": self.network.forward_head(tokens, pre_logits=True)[:, :, None, None]}


def pooled_tokens(method: Any, check: Check) -> Tensor:
    """Of squared images."""
    network = SmallBeit(check.rule).eval()
    with torch.no_grad():
        return network(batch_of(check).image.square())["pooled"]


def fitted_score_of_pooled(method: Any, check: Check) -> Tensor:
    method.backbone = SmallBeit(check.rule).eval()
    method.fit([trained_on(check, 24)])
    batch = batch_of(check)
    return method.maps(replace(batch, image=batch.image.square())).score


# --- slices


class BlockMeans(nn.Module):
    """Twelve means of a slice in place of a network."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        x = (x[:, :1] - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
        means = F.adaptive_avg_pool2d(x.mean(1, keepdim=True), (3, 4))
        return {"blocks": means.flatten(1)[:, :, None, None]}


def _sliced(method: Any, check: Check) -> Maps:
    """Fitted to seven volumes of the rule, fainter ones first; the next two are looked at."""
    method.backbone, method.gaussians = BlockMeans(), SliceGaussians(3 * method.size, 12).double()
    batch = trained_on(check, 9)
    fainter = torch.linspace(0.5, 1, 9).double().reshape(-1, 1, 1, 1, 1)
    volumes = batch.image * fainter
    method.fit([replace(batch, image=volumes[:4]), replace(batch, image=volumes[4:7])])
    found: Maps = method.maps(replace(batch, image=volumes[7:]))
    return found


def sliced_map(method: Any, check: Check) -> Tensor | None:
    return _sliced(method, check).map


def sliced_score(method: Any, check: Check) -> Tensor | None:
    return _sliced(method, check).score
