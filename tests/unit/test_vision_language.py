"""What vision-language methods learn: their own parts alone, and by the formulas they name."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from normscan.methods.base import Batch
from normscan.methods.vision_language.adapted import FORMS, form_of
from normscan.methods.vision_language.aware import moved, recoloured
from normscan.methods.vision_language.common import dice, drawn
from normscan.methods.vision_language.planted import blotched, four_tasks, perlin_windows
from normscan.methods.vision_language.residual import squashed_focal
from normscan.registry import card
from normscan.rng import Rng
from normscan.synthesis import shapes
from normscan.synthesis.draws import grid, signs
from normscan.synthesis.placement import Scene

LEARNING = ("anomalyclip", "mvfa", "simclip", "simclip_plus", "aa_clip", "inctrl", "mediclip")


def batch(n: int = 4, seed: int = 0, training: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 1, 32, 32, generator=generator)
    lesion = torch.rand(n, 1, 32, 32, generator=generator) < 0.1
    label = torch.arange(n) % 2
    return Batch(
        image, torch.ones(n, 1, 32, 32).bool(), Rng(1) if training else Rng(list(range(n))),
        torch.zeros(n), label=label, lesion=lesion & (label == 1).reshape(-1, 1, 1, 1),
    )  # fmt: skip


def made(id: str):
    torch.manual_seed(0)
    return card(id).create(**card(id).arguments("tiny"))


@pytest.mark.parametrize("id", LEARNING)
def test_the_towers_stay_as_they_were(id: str):
    """Each phase changes what it names; no gradient goes into CLIP."""
    method = made(id)
    before = copy.deepcopy(method.state_dict())
    for phase in method.phases():
        (player,) = phase.players
        optimizer = player.optimizer(player.parameters())
        method.train()
        sum(method.loss(batch(), phase.name, player.name).values()).backward()
        optimizer.step()
        method.zero_grad()
    own = {
        id for phase in method.phases() for p in phase.players for id in map(id_of, p.parameters())
    }
    changed = {n for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    named = {n for n, p in method.named_parameters() if id_of(p) in own}
    norms = {n for n in changed if "running" in n or "num_batches" in n}
    assert changed - norms <= named and len(changed) > 0
    assert not any(n.startswith(("eye", "tower")) for n in changed)


def id_of(parameter: torch.nn.Parameter) -> int:
    return id(parameter)


def test_learnt_words_take_their_places_alone():
    """Other words of the sentences, and words of other blocks, stay."""
    words, tongue = made("anomalyclip").words, made("anomalyclip").tower.tongue
    seen = []

    def watch(i, x):
        seen.append(words._deeper(i, x))
        return seen[-1]

    embedded = tongue.token_embedding(words.ids)
    full = torch.cat([embedded[:, :1], words.context, embedded[:, 13:]], 1)
    tongue.states(words.ids, full, watch)
    torch.testing.assert_close(seen[0], full + tongue.positional_embedding)
    assert torch.equal(seen[1][:, 1:5], words.deep[0].expand(2, -1, -1))
    torch.testing.assert_close(tongue(words.ids, full, words._deeper), words(tongue))


def test_residuals_of_inctrl_are_those_of_a_loop():
    method = made("inctrl").eval()
    references, images = batch(3, 7).image, batch(2, 8, training=False)
    method.fit([batch(3, 7, training=False)])
    tokens, _, _ = method.eye.layers(images.image, method.layers)
    banks, _, _ = method.eye.layers(references, method.layers)
    wanted = torch.zeros(2, 64)
    for own, bank in zip(tokens, banks, strict=True):
        for image in range(2):
            for patch in range(64):
                cosines = [
                    F.cosine_similarity(own[image, 1 + patch], bank[k, 1 + p], dim=0)
                    for k in range(3) for p in range(64)
                ]  # fmt: skip
                wanted[image, patch] += (1 - max(cosines)) / 2 / len(method.layers)
    found = method.maps(images).map.flatten(1)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("id", ["inctrl", "mvfa", "simclip_plus"])
def test_the_order_of_references_changes_nothing(id: str):
    method, image = made(id).eval(), batch(2, 9, training=False)
    references = batch(4, 3, training=False)
    method.fit([references])
    first = method.maps(image)
    references.image = references.image.flip(0)
    references.rng = Rng([0, 1, 2, 3])
    method.fit([references])
    torch.testing.assert_close(method.maps(image).map, first.map, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.maps(image).score, first.score, rtol=1e-4, atol=1e-5)


def test_references_are_drawn_by_the_seed():
    many = [batch(8, seed, training=False) for seed in range(3)]
    for part, first in zip(many, (0, 8, 16), strict=True):
        part.rng = Rng(list(range(first, first + 8)))
    images = drawn(many, 5)
    every = torch.cat([part.image for part in many])
    assert len(images) == 5 and all((every == image).flatten(1).all(1).any() for image in images)
    for part, first in zip(many, (0, 8, 16), strict=True):
        part.rng = Rng(list(range(first, first + 8)))
    assert torch.equal(drawn(many, 5), images)


def test_losses_by_their_formulas():
    p, y = torch.tensor([0.2, 0.9, 0.6]), torch.tensor([0, 1, 0])
    right = torch.where(y == 1, torch.sigmoid(p), 1 - torch.sigmoid(p))
    torch.testing.assert_close(squashed_focal(p, y), (-((1 - right) ** 2) * right.log()).mean())
    q, t = torch.rand(2, 4, 4), torch.rand(2, 4, 4) < 0.5
    each = [
        1 - (2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(q, t, strict=True)
    ]
    torch.testing.assert_close(dice(q, t), torch.stack(each).mean())


def test_forms_turn_shift_and_mirror():
    x = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((33, 33)), 2))
    x = x.float()[None, None]
    middle = slice(8, 25)
    for number, degrees in ((1, -22.5), (3, 11.25)):
        wanted = ndimage.rotate(x[0, 0].numpy(), degrees, reshape=False, order=1)
        found = form_of(x, number)[0, 0].numpy()
        np.testing.assert_allclose(found[middle, middle], wanted[middle, middle], atol=2e-3)
    right_down = ndimage.shift(x[0, 0].numpy(), (-1.65, -1.65), order=1)
    np.testing.assert_allclose(
        form_of(x, 5)[0, 0].numpy()[middle, middle], right_down[middle, middle], atol=1e-4
    )
    assert torch.equal(form_of(x, FORMS - 2), x.flip(3))
    assert torch.equal(form_of(x, FORMS - 1), x.flip(2))


def test_lesions_move_with_their_images():
    """Where an image is bright the lesion is, before and after."""
    image = torch.full((16, 3, 32, 32), 0.3)
    image[..., 10:18, 12:20] = 1.0
    lesion = image[:, :1] > 0.9
    new, mask = moved(image, lesion, Rng(0))
    assert (new[:, :1][mask] > 0.6).all() and (new[:, :1][~mask] < 0.75).all()
    assert not torch.equal(new[0], new[1])
    colours = recoloured(torch.rand(8, 3, 16, 16), Rng(0))
    assert colours.min() >= 0 and colours.max() <= 1


def test_planted_windows_keep_to_their_size():
    shape = perlin_windows((0.3, 0.5))
    outline = shape(20, (64, 80), Rng(0))
    sides = 2 * outline.extent / torch.tensor([64, 80])
    assert sides.min() >= 0.3 and sides.max() <= 0.5
    offsets = grid((64, 80))[None] - torch.tensor([32.0, 40.0]).reshape(1, 2, 1, 1)
    inside = outline.inside(offsets.expand(20, -1, -1, -1))
    beyond = (offsets.abs() > outline.extent[:, :, None, None]).any(1)
    assert inside.any() and not (inside & beyond).any()


def test_planted_anomalies_are_labelled_where_they_change():
    image = torch.from_numpy(np.random.default_rng(0).random((24, 1, 48, 48))).float()
    made = four_tasks()(image, image.roll(1, 0), Rng(0), torch.ones(24, 1, 48, 48).bool())
    changed = (made.image - image).abs() > 1 / 255
    assert (made.label[changed] > 0.9999).all()
    still = ~changed.flatten(1).any(1)
    assert 3 <= still.sum() <= 20 and made.image.min() >= 0 and made.image.max() <= 1


def test_blotches_are_smoothed_noise_behind_a_soft_edge():
    """The noise of one width, brought to 0..1, times the softened mask and a signed amount."""
    host = torch.full((4, 1, 40, 40), 0.5)
    scene = Scene(host, host, host > 0, host > 0, Rng(3), shapes.squares()(4, (40, 40), Rng(3)))
    scene.put(torch.full((4, 2), 20.0))
    scene.mask = torch.zeros(4, 1, 40, 40).bool()
    scene.mask[..., 10:30, 10:30] = True
    new, _ = blotched((0.4, 0.6))(scene, host)
    rng = Rng(3)
    noise = (rng.normal((4, 1, 40, 40)) >= 0).float()
    fine = rng.uniform((4, 1))[:, 0] < 0.5
    share, sign, wide = rng.uniform((4, 1)), signs(rng, (4, 1)), rng.uniform((4, 1))
    for i in range(4):
        smooth = ndimage.gaussian_filter(noise[i, 0].numpy(), 4 if fine[i] else 7)
        smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
        soft = ndimage.gaussian_filter(scene.mask[i, 0].double().numpy(), 1 + 3 * float(wide[i]))
        amount = float(sign[i]) * (0.4 + 0.2 * float(share[i]))
        wanted = np.clip(0.5 + amount * smooth * soft, 0, 1)
        np.testing.assert_allclose(new[i, 0].numpy()[8:32, 8:32], wanted[8:32, 8:32], atol=2e-3)
