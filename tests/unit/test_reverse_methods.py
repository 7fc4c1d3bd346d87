"""Losses, maps and training of the reverse distillation systems, written out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.features.urd import masked_distance
from normscan.objectives.cosine import global_loss, point_distance
from normscan.registry import card
from normscan.rng import Rng

IDS = ("rd4ad", "edc", "e2ad", "recontrast", "urd")


def build(method: str, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return card(method).create(**card(method).arguments("tiny", **changes))


def batch(n: int = 2, channels: int = 1):
    image = torch.rand(n, channels, 64, 64, generator=torch.Generator().manual_seed(1))
    return Batch(image, torch.ones(n, 1, 64, 64, dtype=torch.bool), Rng(0), torch.full((n,), 0.5))


def cosine(a, b):
    return sum(
        1 - (F.normalize(x.flatten(1)) * F.normalize(y.flatten(1))).sum(1).mean()
        for x, y in zip(a, b, strict=True)
    )


def trained(method, player):
    """As the loop has it: the player's modules learn, all else is frozen and in evaluation mode."""
    method.requires_grad_(False).eval()
    for module in player.modules:
        module.train()
        module.requires_grad_(True)


@pytest.mark.parametrize("name", IDS)
def test_gradients_reach_the_players_only(name: str):
    method = build(name)
    frozen = {"rd4ad": ["teacher"], "recontrast": ["frozen"], "urd": ["expert"]}.get(name, [])
    (phase,) = method.phases()
    for player in phase.players:
        trained(method, player)
        sum(method.loss(batch(), phase.name, player.name).values()).backward()
        mine = {id(p) for p in player.parameters()}
        for key, p in method.named_parameters():
            if id(p) not in mine or key.partition(".")[0] in frozen:
                assert p.grad is None, key
        assert all(p.grad is not None for p in player.parameters())
        assert not method.training
        method.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_maps_are_finite_for_any_channels(name: str, channels: int):
    maps = build(name, channels=channels).eval().maps(batch(channels=channels))
    assert maps.map.shape[:2] == (2, 1) and torch.isfinite(maps.map).all()


def test_rd4ad_is_trained_by_whole_maps_and_scored_by_points():
    method = build("rd4ad").eval()
    x = batch()
    features, student = method.features(x.image)
    assert [f.shape for f in features] == [s.shape for s in student]
    terms = method.loss(x, "distil", "network")
    torch.testing.assert_close(terms["cosine"], torch.as_tensor(cosine(features, student)))
    expected = sum(
        F.interpolate(point_distance(a, b), (64, 64), mode="bilinear", align_corners=True)
        for a, b in zip(features, student, strict=True)
    )
    torch.testing.assert_close(method.maps(x).map, expected)


def test_the_encoder_of_edc_learns_only_through_what_is_decoded():
    """With the deepest stage cut off the loss doesn't reach the encoder."""
    method = build("edc")
    trained(method, method.phases()[0].players[0])
    x = batch().image
    *finer, deepest = method.encoder(x).values()
    global_loss(finer, method.decoder(deepest.detach())).backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    sum(method.loss(batch(), "distil", "network").values()).backward()
    assert all(p.grad is not None for p in method.encoder.parameters())


def test_edc_averages_its_levels_on_the_finest_grid():
    method = build("edc").eval()
    (a1, a2), (b1, b2) = method.features(batch().image)
    coarse = F.interpolate(point_distance(a2, b2), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(method.maps(batch()).map, (point_distance(a1, b1) + coarse) / 2)


def test_two_rates_for_one_loss():
    method = build("edc", lr=3e-3, encoder_lr=2e-5)
    (player,) = method.phases()[0].players
    optimizer = player.optimizer(player.parameters())
    slow, fast = optimizer.param_groups
    assert (slow["lr"], fast["lr"]) == (2e-5, 3e-3)
    assert {id(p) for p in slow["params"]} == {id(p) for p in method.encoder.parameters()}
    assert {id(p) for p in fast["params"]} == {id(p) for p in method.decoder.parameters()}


def test_momentum_and_mode_of_the_batch_norms():
    method = build("edc", momentum=0.01, batch_norm="train")
    norms = [m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.01}
    method.train()
    assert all(m.training for m in norms)
    frozen = build("edc").train()
    assert not any(
        m.training for m in frozen.encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)
    )


def test_e2ad_by_hand():
    method = build("e2ad").eval()
    for attention in method.attention.modules():
        if hasattr(attention, "gamma"):
            torch.nn.init.constant_(attention.gamma, 0.5)
    x = batch()
    terms = method.loss(x, "distil", "network")
    maps, deep, losses = [], [], []
    for i, image in enumerate((x.image, x.image.flip(2, 3))):
        e1, e2, e3 = method.encoder(image).values()
        d2 = method.decoders[i].groups[1](e3)
        d1 = method.decoders[i].groups[0](d2 + method.attention[i][0](e2))
        losses.append(cosine([e1, e2], [d1, d2]))
        coarse = point_distance(e2, d2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        maps.append((point_distance(e1, d1) + coarse) / 2)
        deep.append(F.normalize(e3.mean((2, 3))))
    torch.testing.assert_close(terms["image"], 0.5 * losses[0])
    torch.testing.assert_close(terms["turned"], 0.5 * losses[1])
    expected = 0.5 * (1 - (deep[0] * deep[1]).sum(1).mean())
    torch.testing.assert_close(terms["consistency"], expected, atol=1e-6, rtol=1e-4)
    found = method.maps(x)
    torch.testing.assert_close(found.map, (maps[0] + maps[1].flip(2, 3)) / 2)
    torch.testing.assert_close(found.score, (maps[0].amax((1, 2, 3)) + maps[1].amax((1, 2, 3))) / 2)


def test_recontrast_crosses_its_encoders():
    method = build("recontrast").eval()
    for p in method.encoder.parameters():
        p.data *= 1.05  # or both would be the same
    x = batch()
    frozen, learnt = (list(b(x.image).values()) for b in (method.frozen, method.encoder))
    from_learnt = method.decoder(method.embedding(learnt))
    from_frozen = method.decoder(method.embedding(frozen))
    one = [h(m) for h, m in zip(method.heads[0], from_learnt, strict=True)]
    two = [h(m) for h, m in zip(method.heads[1], from_frozen, strict=True)]
    terms = method.loss(x, "distil", "network")
    torch.testing.assert_close(terms["frozen"], cosine(frozen, one) / 2)
    torch.testing.assert_close(terms["learnt"], cosine(learnt, two) / 2)
    expected = sum(
        F.interpolate(point_distance(a, b), (64, 64), mode="bilinear", align_corners=True)
        for a, b in zip(frozen + learnt, one + two, strict=True)
    )
    torch.testing.assert_close(method.maps(x).map, expected)


def test_recontrast_counts_its_steps_but_not_the_validation():
    method = build("recontrast")
    method.loss(batch(), "distil", "network")
    with torch.no_grad():
        method.loss(batch(), "distil", "network")
    assert int(method.step) == 1


def test_masked_distance_by_hand():
    a = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 2).repeat(1, 1, 2, 1)
    b = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 2, 2)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 2:] = True
    # Distances 0 on the left and 1 on the right: just what the mask asks for.
    assert float(masked_distance([a], [b], mask)) == 0
    assert float(masked_distance([a], [b], ~mask)) == 1
    assert float(masked_distance([a, a[..., :1]], [b, b[..., :1]], ~mask)) == 1 + 1
    target = a.clone().requires_grad_()
    masked_distance([target.detach()], [target * 2 + 1], mask).backward()
    assert target.grad.abs().sum() > 0


def test_urd_terms_by_hand():
    method = build("urd").eval()
    for p in method.teacher.parameters():
        p.data *= 1.05
    x = batch()
    planted, mask = method.planted(x)
    assert mask.any() and not torch.equal(planted, x.image)
    assert torch.equal(planted[~mask], x.image[~mask])
    e, e_planted, t, t_planted = (
        list(net(i).values()) for net in (method.expert, method.teacher) for i in (x.image, planted)
    )
    terms = method.loss(replace(x, rng=Rng(0)), "distil", "teacher")
    normal = sum(point_distance(a, b).mean() for a, b in zip(e, t, strict=True))
    torch.testing.assert_close(terms["normal"], normal)
    torch.testing.assert_close(terms["planted"], masked_distance(e, t_planted, mask))
    torch.testing.assert_close(terms["expert"], cosine(e_planted, t_planted))
    s, s_planted = method.student(t), method.student(t_planted)
    terms = method.loss(replace(x, rng=Rng(0)), "distil", "student")
    torch.testing.assert_close(terms["teacher"], cosine(t, s) + cosine(t, s_planted))
    torch.testing.assert_close(terms["expert"], cosine(e, s) + cosine(e, s_planted))


@pytest.mark.parametrize("similarity", [True, False])
def test_the_injection_by_hand(similarity: bool):
    method = build("urd", similarity=similarity).eval()
    injection = method.injection
    c1, c2 = method.teacher.channels
    f = [torch.randn(2, c1, 8, 8), torch.randn(2, c2, 4, 4)]
    d = torch.randn(2, c2, 4, 4)
    half = F.avg_pool2d(f[0], 2)
    known = injection.mix[0](f[1] + injection.down[0](half))
    if similarity:
        s = F.cosine_similarity(d, f[1], dim=1)[:, None]
        known = injection.gate[0](known * s + d * (1 - s))
    expected = injection.fuse[0](torch.cat([d, known], 1))
    torch.testing.assert_close(injection(1, d, f), expected)


def test_the_teacher_is_in_evaluation_mode_while_the_student_learns():
    method = build("urd", batch_norm="train")
    for player in method.phases()[0].players:
        for module in player.modules:
            module.train()
    before = {k: v.clone() for k, v in method.teacher.named_buffers()}
    method.loss(batch(), "distil", "student")
    assert all(torch.equal(v, before[k]) for k, v in method.teacher.named_buffers())
    assert method.teacher.training
    method.loss(batch(), "distil", "teacher")
    assert not all(torch.equal(v, before[k]) for k, v in method.teacher.named_buffers())


@pytest.mark.parametrize("channels", [1, 3])
def test_textures_come_from_their_folder(tmp_path, channels: int):
    folder = tmp_path / "textures" / "dotted"
    folder.mkdir(parents=True)
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    (folder / "notes.txt").write_text("no image")
    method = build("urd", channels=channels, textures=str(tmp_path / "textures"))
    method.phases()
    texture = method.textures.like(batch(channels=channels).image, Rng(0))
    assert texture.shape == (2, channels, 64, 64)
    small = (picture.astype(np.float32) - picture.min()) / float(np.ptp(picture))
    x = torch.from_numpy(small).permute(2, 0, 1)[None]
    x = x if channels == 3 else x.mean(1, keepdim=True)
    expected = F.interpolate(x, (64, 64), mode="bilinear")
    torch.testing.assert_close(texture[1:], expected, atol=1e-5, rtol=0)


def test_a_folder_without_images_is_told_before_training(tmp_path):
    method = build("urd", textures=str(tmp_path))
    with pytest.raises(ArgumentError, match=str(tmp_path)):
        method.phases()
    method.eval().maps(batch())  # a trained detector needs no textures


def test_an_unsuitable_size_is_told():
    with pytest.raises(ArgumentError, match="Use size="):
        build("rd4ad", size=72)
