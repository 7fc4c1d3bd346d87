"""What the records of ensembles, games, disentangled and diffusion networks compare."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from normscan.methods.autoencoders import discrepancy, disentangled, gated
from normscan.methods.base import Maps, Method
from normscan.synthesis.noise import simplex_noise
from tests.golden.fill import fill, images, wave
from tests.golden.records import Check, batch_of


def full_parameters(method: Method, check: Check) -> Tensor:
    """Parameters of the network that the preset builds, without the memory that it takes."""
    with torch.device("meta"):
        whole = method.card.create(**method.card.arguments(check.preset))
    network = whole.get_submodule(check.module)
    return torch.tensor([float(sum(p.numel() for p in network.parameters()))])


# --- two ensembles, whose members the rule would make equal


def _members_apart(method: Any) -> None:
    """Parameters of the k-th member, from A1 on, are 1 + 0.05 k times those of the rule."""
    with torch.no_grad():
        for k, member in enumerate(method.members.values()):
            for parameter in member.parameters():
                parameter.mul_(1 + 0.05 * k)


def ensemble_map(method: Method, check: Check) -> Tensor:
    _members_apart(method)
    found = method.maps(batch_of(check)).map
    assert found is not None
    return found


def ensemble_score(method: Method, check: Check) -> Tensor:
    assert method.card.reduction == "mean"
    return ensemble_map(method, check).flatten(1).mean(1)


def ensemble_loss(method: Any, check: Check) -> Tensor:
    _members_apart(method)
    method.member(check.phase).train()
    # A member is trained on images from -1 to 1, which it makes itself.
    return sum(method.loss(batch_of(check), check.phase, "network").values()).detach().reshape(1)


def refining_loss(method: Any, check: Check) -> Tensor:
    """Members at rest, images as they are, and a mask by the rule."""
    _members_apart(method)
    method.refiner.train()
    batch = batch_of(check)
    mixed = batch.image, wave(tuple(batch.image.shape)) > 0.5
    with patch.object(discrepancy, "patch_mix", lambda *_: mixed):
        return sum(method.loss(batch, "refine", "network").values()).detach().reshape(1)


# --- the gated U-Net and its discriminator

GATES = (0.7, 0.5, 0.3, 0.1)


def _gated(method: Any) -> Any:
    method.network.gates.copy_(torch.tensor(GATES))
    return method


def settle(critic: nn.Module) -> None:
    """Let the power iteration of the spectral norms end, which begins at random."""
    critic.train()
    with torch.no_grad():
        for _ in range(300):
            for layer in critic.modules():
                if is_parametrized(layer):
                    _ = layer.weight


def gated_forward(method: Any, check: Check) -> Tensor:
    with torch.no_grad():
        return _gated(method).network(gated.cut(images(*check.shape)))


def gated_features(method: Any, check: Check) -> Tensor:
    with torch.no_grad():
        return method.network.encode(gated.cut(images(*check.shape)))[-1]


def _gated_maps(method: Any, check: Check) -> Maps:
    return _gated(method).maps(batch_of(check))


def gated_map(method: Method, check: Check) -> Tensor:
    found = _gated_maps(method, check).map
    assert found is not None
    return found


def gated_score(method: Method, check: Check) -> Tensor:
    found = _gated_maps(method, check).score
    assert found is not None
    return found


def gated_opinion(method: Any, check: Check) -> Tensor:
    settle(method.critic)
    with torch.no_grad():
        return method.critic(images(*check.shape)).sigmoid()


def gated_loss(method: Any, check: Check) -> Tensor:
    """A patch of each image and, for the picture of its gradients, the mirrored patch squared."""
    settle(_gated(method).critic)
    x = images(*check.shape)
    method.train()
    with patch.object(method, "items", lambda *_: (x, x.flip(-1) ** 2)):
        return sum(method.loss(batch_of(check), "restore", check.player).values()).detach()[None]


def gates(method: Any, check: Check) -> Tensor:
    """After 150 updates of 2000."""
    player = method.phases()[0].players[1]
    assert player.schedule is not None
    for step in range(150):
        player.schedule(step, 2000)
    return method.network.gates


def gradient_pictures(method: Method, check: Check) -> list[Tensor]:
    """Of an image of 8 bits, in its units, for each size of the cells."""
    grey = (images(*check.shape) * 255).round()
    return [gated.hog_image(grey, cell) for cell in gated.CELLS]


# --- shape and appearance


def codes(method: Any, check: Check) -> Any:
    with torch.no_grad():
        return method.network.encode(images(*check.shape))


def disentangled_loss(method: Any, check: Check) -> Tensor:
    """One rectangle in each image; contrasts by a gamma of 0.75 and 1.5."""
    batch = batch_of(check)
    mask = torch.zeros(len(batch), 1, *batch.image.shape[2:], dtype=torch.bool)
    mask[:, :, 8:14, 10:15] = True
    batch.rng.uniform = lambda shape: torch.tensor([[0.25], [1.0]]) / 1.5  # type: ignore[method-assign]
    with (
        patch.object(disentangled, "rectangles", lambda *_, **__: mask),
        patch.object(disentangled, "bright_values", lambda *_: torch.full((2, 1, 1), 0.9)),
    ):
        return sum(method.train().loss(batch, check.phase, "network").values()).detach()[None]


# --- partial diffusion


def _as_guided_diffusion(method: Any) -> Any:
    """MONAI's U-Net with the release's weights: one layer for queries, keys and values of a head
    after the other, and the sines of the step before its cosines."""
    network = method.network
    with torch.no_grad():
        first = network.time_embed[0].weight
        half = first.shape[1] // 2
        first.copy_(first.roll(half, dims=1))
        for part in network.modules():
            if not hasattr(part, "to_q"):
                continue
            c = part.to_q.in_features
            whole = nn.Conv1d(c, 3 * c, 1, dtype=torch.float64)
            fill(whole)
            rows = (c // part.num_heads,) * 3
            for values, kind in ((whole.weight[..., 0], "weight"), (whole.bias, "bias")):
                heads = values.unflatten(0, (part.num_heads, -1))
                parts = (part.to_q, part.to_k, part.to_v)
                for layer, taken in zip(parts, heads.split(rows, dim=1), strict=True):
                    getattr(layer, kind).copy_(taken.flatten(0, 1))
            projection = nn.Conv1d(c, c, 1, dtype=torch.float64)
            fill(projection)
            part.out_proj.weight.copy_(projection.weight[..., 0])
    return method


STEPS = torch.tensor([3, 700])


def noise_prediction(method: Any, check: Check) -> Tensor:
    with torch.no_grad():
        return _as_guided_diffusion(method).network(2 * images(*check.shape) - 1, STEPS)


def _drawn(x: Tensor, t: Tensor, batch: object) -> Tensor:
    return 0.5 * wave(tuple(x.shape)).float() * (1 + t.reshape(-1, 1, 1, 1) / 1000)


def _drawn_plain(x: Tensor, t: Tensor, batch: object) -> Tensor:
    return 0.5 * wave(tuple(x.shape)).float()


def walked_map(method: Any, check: Check) -> Tensor:
    with patch.object(method, "noise", _drawn):
        return _as_guided_diffusion(method).maps(batch_of(check)).map


def walked_loss(method: Any, check: Check) -> Tensor:
    batch = batch_of(check)
    batch.rng.integers = lambda *_: STEPS  # type: ignore[method-assign]
    with patch.object(method, "noise", _drawn):
        return sum(_as_guided_diffusion(method).loss(batch, "", "").values()).detach()[None]


def diffusion_tables(method: Any, check: Check) -> Tensor:
    """At the steps 0, 1, 249 and 999."""
    names = ("signal", "noise", "mean_clean", "mean_noisy", "std")
    return torch.cat([getattr(method.schedule, name)[[0, 1, 249, 999]] for name in names])


class _Ordered:
    """Stands for ``Rng``: one known permutation."""

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return wave((shape[1],)).expand(shape)


def noise_field(method: Method, check: Check) -> Tensor:
    """At step 200."""
    kind = method.card.defaults["noise"]
    return simplex_noise(check.shape, _Ordered(), torch.tensor([200]), kind=kind)  # type: ignore[arg-type]


# --- whole volumes in healthy deviations


def _three_volumes() -> tuple[Tensor, Tensor]:
    x = 0.9 * images(3, 1, 16, 16, 16)
    return x, 0.7 * x.flip(-1)


def _fitted(method: Any) -> Any:
    """What stands for the network restores a mirrored, darker volume."""
    x, _ = _three_volumes()
    batch = batch_of(Check("", "", [], shape=list(x.shape)))
    batch.image = x
    method.network = nn.Identity()
    with patch.object(method.network, "forward", lambda x: 0.7 * x.flip(-1)):
        method.fit([batch])
        return method, method.maps(batch)


def masked_difference(method: Any, check: Check) -> Tensor:
    return method.difference(*_three_volumes())


def tiles(method: Any, check: Check) -> list[Tensor]:
    fitted, _ = _fitted(method)
    return [fitted.tile_mean, fitted.tile_std]


def tiled_score(method: Any, check: Check) -> Tensor:
    return _fitted(method)[1].score


# --- patches of 15 pixels


def patch_codes(method: Any, check: Check) -> Tensor:
    return method.network.encode(batch_of(check).image)


def patch_codes_everywhere(method: Any, check: Check) -> Tensor:
    """Of images that hold one patch."""
    return method.network.encode_everywhere(batch_of(check).image)


def restored_patches(method: Any, check: Check) -> Tensor:
    """With the release's last layer, which ours leaves away."""
    return method.network.decode(patch_codes(method, check)).sigmoid()
