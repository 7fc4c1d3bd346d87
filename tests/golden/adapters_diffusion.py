"""What the records of the diffusion systems on the engine compare."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.methods.base import Method
from normscan.methods.diffusion import described, patched
from normscan.networks.branches import BranchAttention
from normscan.synthesis.noise import simplex_noise
from tests.golden.adapters_networks import STEPS, _drawn_plain, _Ordered
from tests.golden.fill import fill, images, wave
from tests.golden.records import Check, batch_of


def said(method: Any, check: Check) -> Tensor:
    """What the network says of images from -1 to 1 at the steps 3 and 700."""
    with torch.no_grad():
        return method.network(2 * images(*check.shape) - 1, STEPS)


def drawn_map(method: Any, check: Check) -> Tensor:
    with patch.object(method, "noise", _drawn_plain):
        return method.maps(batch_of(check)).map


def patch_loss(method: Any, check: Check) -> Tensor:
    """Of the third patch of the first image and the second one of the second."""
    batch = batch_of(check)
    draws = iter([STEPS, torch.tensor([2, 1])])
    batch.rng.integers = lambda *_: next(draws)  # type: ignore[method-assign]
    with patch.object(method, "noise", _drawn_plain):
        return sum(method.loss(batch, "", "").values()).detach()[None]


def hidden_patch_loss(method: Any, check: Check) -> Tensor:
    """The squared image stands for the one with hidden parts."""
    given = lambda batch: 2 * batch.image**2 - 1  # noqa: E731
    with patch.object(method, "given", given):
        return patch_loss(method, check)


def flat_field(method: Method, check: Check) -> Tensor:
    return simplex_noise(check.shape, _Ordered(), torch.zeros(1), kind="opensimplex", axes=2)  # type: ignore[arg-type]


def frequencies(method: Method, check: Check) -> list[Tensor]:
    """Without a square of 6, only it, and without one of 14."""
    x = images(*check.shape)[:1].float()
    known = ((3, False), (3, True), (7, False))
    return [patched.frequency_part(x, torch.tensor([h]), torch.tensor([low])) for h, low in known]


def _positive(method: Any) -> Any:
    """The channel weights of LPIPS are positive, and attention isn't projected at its end."""
    for part in method.network.modules():
        if hasattr(part, "out_proj"):
            part.out_proj = torch.nn.Identity()
    for head in method.perceptual.heads.parameters():
        head.abs_()
    return method


def unprojected(method: Any, check: Check) -> Tensor:
    return said(_positive(method), check)


def perceived(method: Any, check: Check) -> Tensor:
    """LPIPS of images and their squares."""
    x = images(*check.shape)
    return _positive(method).perceptual(2 * x - 1, 2 * x**2 - 1)


def perceptive_map(method: Any, check: Check) -> Tensor:
    return drawn_map(_positive(method), check)


def perceptive_image(method: Any, check: Check) -> Tensor:
    with patch.object(method, "noise", _drawn_plain):
        return _positive(method).maps(batch_of(check)).reconstruction


# --- guided by labels


def labelled_said(method: Any, check: Check) -> Tensor:
    """The first image is told to be healthy, the second one not."""
    with torch.no_grad():
        return method.network(2 * images(*check.shape) - 1, STEPS, torch.tensor([0, 1]))


def logits(method: Any, check: Check) -> Tensor:
    return method.classifier(2 * images(*check.shape) - 1, STEPS)


def bound_and_error(method: Any, check: Check) -> Tensor:
    """Bits and squared errors of the images at the steps 3 and 400, and of the first one at 0."""
    x, label, found = images(*check.shape), torch.tensor([0, 1]), []
    noise = 0.5 * wave(tuple(x.shape))
    for t in (torch.tensor([3, 400]), torch.tensor([0, 700])):
        noisy = method.schedule.diffuse(x, t, noise)
        with torch.no_grad():
            said, variance = method.network(noisy, t, label).chunk(2, dim=1)
        found.append(method.bits(x, noisy, t, said, variance))
        found.append((said - noise).square().flatten(1).mean(1))
    return torch.cat([found[0], found[1], found[2], found[3]])


def fused_image(method: Any, check: Check) -> Tensor:
    """Sampled anew where a wave is high."""
    chosen = (wave(tuple(check.shape)) > 0.3).double()

    with (
        patch.object(method, "noise", _drawn_plain),
        patch.object(method, "saliency", lambda x: x),
        patch.object(method, "mask", lambda x: chosen),
    ):
        return method.maps(batch_of(check)).reconstruction


def deep_field(method: Method, check: Check) -> Tensor:
    """Three octaves over the plane, two channels and step 200."""
    return simplex_noise(
        check.shape,
        _Ordered(),
        torch.tensor([200]),
        3,
        0.9,
        64,
        "opensimplex",
        axes=4,  # type: ignore[arg-type]
    )


# --- prototypes


def bridge(method: Any, check: Check) -> list[Tensor]:
    """Normaliser and potential at five unit vectors, and where the plan leads from them."""
    x = F.normalize(images(*check.shape).reshape(5, -1), dim=1)
    carried = method.bridge.carried(x).flatten()[[0, 47, 48, 120, 239]]
    return [method.bridge.log_plan(x).logsumexp(1), method.bridge.log_density(x), carried]


# --- on Stable Diffusion


def _branches(check: Check) -> BranchAttention:
    made = BranchAttention(16, check.shape[-1], 4).double()
    fill(made)
    return made


def branch_parameters(method: Any, check: Check) -> Tensor:
    numbers = sum(p.numel() for p in _branches(check).parameters())
    return torch.tensor([float(numbers)], dtype=torch.float64)


def branch_attention(method: Any, check: Check) -> Tensor:
    """Inside diffusers' attention of 16 channels and two heads, to itself or to seven words."""
    from diffusers.models.attention_processor import Attention

    told = check.shape[-1]
    words = None if told == 16 else images(4, 1, 7, told).reshape(4, 7, told)
    attn = Attention(16, cross_attention_dim=None if told == 16 else told, heads=2, dim_head=8)
    fill(attn.double())
    with torch.no_grad():
        return _branches(check)(attn, images(4, 1, 9, 16).reshape(4, 9, 16), words)


def word_attention(method: Any, check: Check) -> Tensor:
    return described.attention_of(0.1 * images(1, 1, 64, 12).reshape(1, 8, 8, 12), 5)


def word_loss(method: Any, check: Check) -> Tensor:
    return 1 - word_attention(method, check).amax().reshape(1)


def turned(method: Any, check: Check) -> Tensor:
    """Three contexts of different strength."""
    shift = images(3, 2, 9, 16)
    given = [0.3 * (k + 1) * wave((2, 9, 16)) + 0.2 * shift[k] for k in range(3)]
    moves = method.painting.prompt_moves
    return described.turned_prompt(*given, 4, moves)[:, 4]
