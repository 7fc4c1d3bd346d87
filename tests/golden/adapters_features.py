"""What the records of the feature systems compare beside maps, losses and parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.methods.base import Batch, Method
from normscan.methods.features.reverse import mean_map
from normscan.scores.coreset import _greedy
from normscan.scores.dpmm import DirichletMixture
from normscan.scores.postprocess import apply_chain
from normscan.scores.reductions import reduce_map
from tests.golden.fill import RULES, grain, images
from tests.golden.records import RUNS, Check, batch_of

# --- shared


@torch.no_grad()
def flip(module: nn.Module) -> None:
    """Turn every parameter and statistic round along its first axis.

    The rule fills two networks of one shape alike, whose features then don't differ. The releases'
    second networks were filled and turned round in the same way.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.flip(0))


def _apart(method: Method, check: Check) -> None:
    """Flip the part that ``module`` names, if any."""
    if check.module:
        flip(method.get_submodule(check.module))


def map_apart(method: Method, check: Check) -> Tensor:
    _apart(method, check)
    return RUNS["map"](method, check)


def loss_apart(method: Method, check: Check) -> Tensor:
    _apart(method, check)
    return RUNS["loss"](method, check)


def whole_map(method: Method, batch: Batch) -> Tensor:
    """The map, enlarged to the images."""
    found = method.maps(batch).map
    assert found is not None
    return F.interpolate(found, batch.image.shape[2:], mode="bilinear", align_corners=False)


def processed(method: Method, maps: Tensor) -> Tensor:
    """Maps (B, 1, H, W) behind the chain of the card."""
    seen = np.ones(maps.shape[2:], bool)
    chain = method.card.postprocess
    done = [apply_chain(chain, m, seen, seen[None]) for m in maps[:, 0].double().numpy()]
    return torch.from_numpy(np.stack(done))[:, None]


def reduced(method: Method, batch: Batch) -> Tensor:
    """The score of the map, enlarged, post-processed and reduced as the card says."""
    done = processed(method, whole_map(method, batch))[:, 0].numpy()
    return torch.tensor([reduce_map(method.card.reduction, m, np.ones_like(m, bool)) for m in done])


def score_apart(method: Method, check: Check) -> Tensor:
    """The method's own score, or that of its map."""
    _apart(method, check)
    batch = batch_of(check)
    own = method.maps(batch).score
    return reduced(method, batch) if own is None else own


# --- students


def map_of_whole_distances(method: Method, check: Check) -> Tensor:
    """The release leaves the half of each of three distances away."""
    return 8 * map_apart(method, check)


def score_of_whole_distances(method: Method, check: Check) -> Tensor:
    return 8 * score_apart(method, check)


def loss_of_whole_distances(method: Method, check: Check) -> Tensor:
    return 2 * loss_apart(method, check)


# --- reverse distillation


def mined_gradient(method: Any, check: Check) -> Tensor:
    """Of the embedding's first convolution, in the 21st step of 1000."""
    flip(method.encoder)
    method.train().step.fill_(20)
    sum(method.loss(batch_of(check), "", "").values()).backward()
    gradient: Tensor = method.embedding.paths[0][0][0].weight.grad
    return gradient


def map_of_one_view(method: Any, check: Check, view: int = 0) -> Tensor:
    """The map of one view of two, as the network sees it."""
    _apart(method, check)
    image = batch_of(check).image
    with torch.no_grad():
        return mean_map(
            *method.view(image.rot90(2, (2, 3)) if view else image, view)[:2], "nearest"
        )


def map_of_turned_view(method: Any, check: Check) -> Tensor:
    return map_of_one_view(method, check, view=1)


def student_parameters(method: Any, check: Check) -> Tensor:
    parts = (method.embedding, method.decoder, method.injection)
    return torch.tensor([float(sum(p.numel() for m in parts for p in m.parameters()))])


def planted_loss(method: Any, check: Check) -> Tensor:
    """The loss with the image turned and squared as what is planted, in a rectangle."""
    flip(method.teacher)
    batch = batch_of(check)
    mask = torch.zeros(len(batch), 1, 64, 64, dtype=torch.bool)
    mask[:, :, 16:48, 8:40] = True
    method.planted = lambda _: (batch.image.flip(-1) ** 2, mask)
    terms = method.train().loss(batch, check.phase, check.player)
    return sum(terms.values()).detach().reshape(1)


# --- autoencoders of features


def stage_features(method: Any, check: Check) -> Tensor:
    return method.features(batch_of(check).image)


def restored_features(method: Any, check: Check) -> Tensor:
    with torch.no_grad():
        return method.autoencoder(stage_features(method, check))


def loss_at_rest(method: Method, check: Check) -> Tensor:
    """The loss in evaluation mode, without dropout."""
    with torch.no_grad():
        return sum(method.loss(batch_of(check), "", "").values()).reshape(1)


def negative_similarity(method: Method, check: Check) -> Tensor:
    return map_apart(method, check) - 1


def score_of_negative_similarity(method: Method, check: Check) -> Tensor:
    return score_apart(method, check) - 1


# --- one class


def contrast_of_class_3(method: Any, check: Check) -> Tensor:
    """With the extremes that the release has for class 3 of CIFAR-10."""
    method.normalise.low.fill_(-10.599172931391799)
    method.normalise.high.fill_(11.093187820377565)
    return method.normalise(batch_of(check).image)


def centre_of_bright(method: Any, check: Check) -> Tensor:
    """The centre for images times 8; with a radius where there is one."""
    bright = batch_of(check)
    bright.image = 8 * bright.image
    with torch.no_grad():
        method.loss(bright, "centre", "encoder")
    if method.ball.objective == "soft-boundary":
        method.radius.fill_(0.6)
    centre: Tensor = method.centre
    return centre


def distance_from_centre(method: Any, check: Check) -> Tensor:
    centre_of_bright(method, check)
    return method.maps(batch_of(check)).score


def one_class_loss(method: Any, check: Check) -> Tensor:
    centre_of_bright(method, check)
    terms = method.train().loss(batch_of(check), "one-class", "encoder")
    return sum(terms.values()).detach().reshape(1)


def radius_after_a_loss(method: Any, check: Check) -> Tensor:
    one_class_loss(method, check)
    return method.radius.reshape(1)


# --- densities and memories


def _fitted_positions(method: Any, check: Check) -> Batch:
    """Fit every fourth channel to 9 images, and return two others, turned."""
    method.chosen.copy_(torch.arange(0, 448, 4))
    batch, every = batch_of(check), images(11, *check.shape[1:], rule=check.rule)
    batch.image = every[:9]
    method.fit([batch])
    batch.image = every[9:].flip(-1)
    return batch


def fitted_map(method: Method, check: Check) -> Tensor:
    return whole_map(method, _fitted_positions(method, check))


def fitted_score(method: Method, check: Check) -> Tensor:
    return reduced(method, _fitted_positions(method, check))


def _memorised(method: Method, check: Check) -> Batch:
    """Memorise 4 images, and return two of them, turned."""
    batch, every = batch_of(check), images(4, *check.shape[1:], rule=check.rule)
    batch.image = every
    method.fit([batch])
    batch.image = every[:2].flip(-1)
    return batch


def memorised_map(method: Method, check: Check) -> Tensor:
    return whole_map(method, _memorised(method, check))


def memorised_smoothed_map(method: Method, check: Check) -> Tensor:
    return processed(method, whole_map(method, _memorised(method, check)))


def memorised_score(method: Method, check: Check) -> Tensor:
    return method.maps(_memorised(method, check)).score


def patches_of_images(method: Any, check: Check) -> Tensor:
    return method.patches(batch_of(check).image)[0]


class InOrder:
    """Stands for ``Rng``: what is drawn at random are the first ones."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.arange(shape[0])


def coreset(method: Method, check: Check) -> Tensor:
    """Rows chosen among 400 of 128 numbers, begun from the first ten."""
    return _greedy(grain((400, 128)), 40, InOrder())  # type: ignore[arg-type]


# --- adapted features


def centres(method: Any, check: Check) -> Tensor:
    """The centres of two batches of 3 images."""
    player = method.phases()[0].players[0]
    optimizer = player.optimizer(method.bank.parameters())
    batch = batch_of(check)
    for step, part in enumerate(images(6, *check.shape[1:], rule=check.rule).split(3)):
        batch.image = part
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = player.schedule(step, 2)
        sum(method.loss(batch, "centres", "centres").values()).backward()
        optimizer.step()
    means: Tensor = method.bank.means
    return means


def _around_centres(method: Any, check: Check) -> Batch:
    centres(method, check)
    with torch.no_grad():
        method.radius.value.fill_(0.5)
    batch = batch_of(check)
    batch.image = images(6, *check.shape[1:], rule=check.rule)[:2].flip(-1)
    return batch


def spheres_loss(method: Any, check: Check) -> Tensor:
    batch = _around_centres(method, check)
    return sum(method.train().loss(batch, "adapt", "network").values()).detach().reshape(1)


def spheres_map(method: Any, check: Check) -> Tensor:
    return method.maps(_around_centres(method, check)).map


def spheres_score(method: Any, check: Check) -> Tensor:
    return reduced(method, _around_centres(method, check))


@dataclass
class Drawn:
    """Stands for ``Rng``: normal numbers by the rule."""

    rule: str

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return RULES[self.rule](tuple(shape))


def hinge_loss(method: Method, check: Check) -> Tensor:
    """Without the weight decay, which the release's optimiser adds."""
    batch = batch_of(check)
    batch.rng = Drawn(check.rule)  # type: ignore[assignment]
    terms = method.train().loss(batch, "", "")
    return (terms["real"] + terms["noisy"]).detach().reshape(1)


def map_without_margin(method: Method, check: Check) -> Tensor:
    return processed(method, whole_map(method, batch_of(check))) - 0.5


def score_without_margin(method: Method, check: Check) -> Tensor:
    return score_apart(method, check) - 0.5


# --- transformers


def _queries(method: Any, check: Check) -> None:
    """Each layer's queries are a tensor of their own in the release."""
    _, *shape = method.network.queries.shape
    with torch.no_grad():
        method.network.queries.copy_(RULES[check.rule](tuple(shape)) / shape[1] ** 0.5)


def given(method: Any, check: Check) -> Tensor:
    """Features by the rule for two images."""
    channels = method.network.inward.in_features
    return RULES[check.rule]((2, channels, *method.network.grid))


def restored_stages(method: Any, check: Check) -> Tensor:
    _queries(method, check)
    with torch.no_grad():
        return method.network(given(method, check))


def map_of_queries(method: Method, check: Check) -> Tensor:
    _queries(method, check)
    return map_apart(method, check)


def score_of_queries(method: Method, check: Check) -> Tensor:
    _queries(method, check)
    return score_apart(method, check)


def jittered_loss(method: Any, check: Check) -> Tensor:
    _queries(method, check)
    features = given(method, check)
    method.features = lambda _: features
    batch = batch_of(check)
    batch.rng = Drawn(check.rule)  # type: ignore[assignment]
    return sum(method.train().loss(batch, "", "").values()).detach().reshape(1)


def one_place(method: Any) -> None:
    """All patches at the place of the first: how places are interpolated doesn't count."""
    places = method.backbone.network.pos_embed
    with torch.no_grad():
        places.copy_(places[:, :1].expand_as(places))


def features_of_group(method: Any, check: Check) -> Tensor:
    one_place(method)
    with torch.no_grad():
        return method.pairs(batch_of(check).image)[0][0]


def restored_of_group(method: Any, check: Check) -> Tensor:
    one_place(method)
    with torch.no_grad():
        return method.pairs(batch_of(check).image)[1][0]


def map_of_one_place(method: Method, check: Check) -> Tensor:
    one_place(method)
    return map_apart(method, check)


def score_of_one_place(method: Method, check: Check) -> Tensor:
    """Of the map's own grid."""
    grid = map_of_one_place(method, check)[:, 0].numpy()
    whole = [np.ones_like(m, bool) for m in grid]
    pairs = zip(grid, whole, strict=True)
    return torch.tensor([reduce_map(method.card.reduction, m, w) for m, w in pairs])


def damped_loss(method: Any, check: Check) -> Tensor:
    """The loss half way up the ramp of the damped share."""
    one_place(method)
    method.seen.fill_(method.ramp / 2)
    return sum(method.train().loss(batch_of(check), "", "").values()).reshape(1)


def damped_gradient(method: Any, check: Check) -> Tensor:
    damped_loss(method, check).backward()
    gradient: Tensor = method.decoder.bottleneck[1].weight.grad
    return gradient


# --- patches of a transformer


def _bytes(check: Check, count: int) -> Tensor:
    """Images as 8 bits hold them."""
    return (255 * images(count, *check.shape[1:], rule=check.rule)).round() / 255


def tokens(method: Any, check: Check) -> Tensor:
    one_place(method)
    with torch.no_grad():
        (features,) = method.backbone(_bytes(check, 1)).values()
    return features.flatten(2).mT[0]


def _remembered(method: Any, check: Check) -> Batch:
    """Remember 3 images, and return two others, turned."""
    one_place(method)
    batch, every = batch_of(check), _bytes(check, 5)
    batch.image = every[:3]
    method.fit([batch])
    batch.image = every[3:].flip(-1)
    return batch


def remembered_map(method: Method, check: Check) -> Tensor:
    return method.maps(_remembered(method, check)).map


def remembered_score(method: Method, check: Check) -> Tensor:
    return method.maps(_remembered(method, check)).score


def _mixture(check: Check) -> tuple[DirichletMixture, Tensor]:
    """Twelve components with statistics by the rule, and 300 points."""
    full = check.arguments["covariance"] == "full"
    x = F.normalize(grain((300, 8)), dim=1)
    shares = 1 + 0.5 * grain((12,))
    shares, means = shares / shares.sum(), 0.5 * grain((12, 8)).flip(0)
    spread = 0.2 + 0.1 * grain((12, 8))
    second = means.square() + spread
    if full:
        second = means[:, :, None] * means[:, None] + torch.diag_embed(spread)
    regularisation = 1e-3 if full else 1e-6
    mixture = DirichletMixture(8, 12, check.arguments["covariance"], regularisation).double()
    with torch.no_grad():
        mixture.shares.copy_(shares)
        mixture.first.copy_(shares[:, None] * means)
        mixture.second.copy_(shares.reshape(12, *[1] * (second.ndim - 1)) * second)
        mixture.points.fill_(len(x))
    return mixture, x


def mixture_weights(method: Method, check: Check) -> Tensor:
    return _mixture(check)[0].components()[0].exp()


def mixture_distance(method: Method, check: Check) -> Tensor:
    """The distance that ``phase`` names."""
    mixture, x = _mixture(check)
    return mixture.distance(x, check.phase)  # type: ignore[arg-type]


def mixture_statistics(method: Method, check: Check) -> tuple[Tensor, Tensor, Tensor]:
    mixture, x = _mixture(check)
    shares, first, second = mixture.statistics(x)
    return shares, first, second.diagonal(dim1=1, dim2=2) if mixture.full else second


def mixture_concentration(method: Method, check: Check) -> Tensor:
    mixture, _ = _mixture(check)
    mixture._concentrate()
    return mixture.concentration.reshape(1)
