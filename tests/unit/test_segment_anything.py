"""Segment Anything's blocks with prompts, its files, and what MMRAD makes of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError
from normscan.methods.base import Batch
from normscan.networks.sam import SHAPES, SegmentAnything, _attended, _model
from normscan.registry import card
from normscan.rng import Rng


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A tiny model of transformers with random weights, and a folder with its file."""
    torch.manual_seed(2)
    model = _model(SHAPES["tiny"], 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("sam")
    state = {k: v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return model, folder


def made(**options):
    torch.manual_seed(0)
    return card("mmrad").create(**card("mmrad").arguments("tiny", **options))


def batch(n: int = 4, further: bool = True, training: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(n, 1, 32, 32, generator=generator)
    photo = {"fundus": torch.rand(n, 3, 32, 32, generator=generator)} if further else {}
    rng = Rng(1) if training else Rng(list(range(n)))
    inside = torch.ones(n, 1, 32, 32).bool()
    return Batch(image, inside, rng, torch.zeros(n), further=photo)


# ---------------------------------------------------------------- the network


def test_without_prompts_it_is_transformers(stored):
    model, folder = stored
    sam, image = SegmentAnything("tiny", 32, str(folder)), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model.get_image_embeddings((image - sam.mean) / sam.std)
        torch.testing.assert_close(sam.embedded(image), theirs, rtol=1e-4, atol=1e-5)
        grey = sam.embedded(image[:, :1])
        torch.testing.assert_close(grey, sam.embedded(image[:, :1].expand(-1, 3, -1, -1)))
        places = model.get_image_wide_positional_embeddings()
        torch.testing.assert_close(sam.places, places)


def test_patches_attend_to_prompts_as_the_formula_says():
    """softmax over patches, biased by their places, and prompts, unbiased; by numpy, head by head."""
    torch.manual_seed(1)
    layer = SegmentAnything("tiny", 32, "random").encoder.layers[1]
    attention, x, prompts = layer.attn, torch.randn(1, 3, 4, 32), torch.randn(5, 32)
    with torch.no_grad():
        found = _attended(attention, x, prompts)[0].flatten(0, 1).numpy()
        both = attention.qkv(torch.cat([x[0].flatten(0, 1), prompts])).numpy().reshape(17, 3, 2, 16)
        across = attention.rel_pos_w.numpy(), attention.rel_pos_h.numpy()
        # Learnt for 8 patches along each side; transformers interpolates them to 4 and 3.
        lines = [
            F.interpolate(torch.from_numpy(p).T[None], 2 * n - 1, mode="linear")[0].T.numpy()
            for p, n in zip(across, (4, 3), strict=True)
        ]
    heads = []
    for head in range(2):
        q, k, v = (both[:, part, head].astype(float) for part in range(3))
        logits = q[:12] @ k.T / 4
        for i in range(12):
            for j in range(12):
                logits[i, j] += q[i] @ lines[0][i % 4 - j % 4 + 3]
                logits[i, j] += q[i] @ lines[1][i // 4 - j // 4 + 2]
        likely = np.exp(logits - logits.max(1, keepdims=True))
        heads.append(likely / likely.sum(1, keepdims=True) @ v)
    weight, bias = (p.detach().numpy() for p in (attention.proj.weight, attention.proj.bias))
    np.testing.assert_allclose(found, np.hstack(heads) @ weight.T + bias, rtol=1e-3, atol=1e-4)


def test_files_fit_by_their_names_and_other_sizes_interpolate(stored, tmp_path, monkeypatch):
    model, folder = stored
    large = SegmentAnything("tiny", 64, str(folder / "model.safetensors"))
    assert large.encoder.pos_embed.shape == (1, 16, 16, 32) and large.places.shape[2:] == (16, 16)
    own, learnt = large.encoder.pos_embed[0], model.vision_encoder.pos_embed[0]
    torch.testing.assert_close(own.mean((0, 1)), learnt.mean((0, 1)), rtol=0.05, atol=0.02)
    whole = SHAPES["tiny"].whole[0]
    line = large.encoder.layers[whole].attn.rel_pos_h
    assert line.shape == (31, 16)
    with pytest.raises(WeightsError, match=r"don't fit sam-vit-base.*facebook/sam-vit-base"):
        SegmentAnything("sam-vit-base", 32, str(folder))
    with pytest.raises(ArgumentError, match="no Segment Anything 'sam-vit-bas'.*sam-vit-base"):
        SegmentAnything("sam-vit-bas", 32)
    with pytest.raises(ArgumentError, match="size 30 is no multiple of 4"):
        SegmentAnything("tiny", 30, "random")
    with pytest.raises(WeightsError, match="random weights only"):
        SegmentAnything("tiny", 32)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("normscan.networks.sam._model", lambda *_: model)
    with pytest.raises(
        WeightsError, match=r"Fetch model.safetensors of huggingface.co/facebook/sam"
    ):
        SegmentAnything("sam-vit-base", 32)


# ---------------------------------------------------------------- the method


def test_only_prompts_tokens_and_decoder_learn():
    method = made()
    before = copy.deepcopy(method.state_dict())
    (phase,) = method.phases()
    (player,) = phase.players
    optimizer = player.optimizer(player.parameters())
    sum(method.loss(batch(training=True), phase.name, player.name).values()).backward()
    optimizer.step()
    changed = {n for n, t in method.state_dict().items() if not torch.equal(t, before[n])}
    assert {"judge.prompts", "judge.marks", "judge.score", "judge.masks"} <= changed
    assert any(n.startswith("judge.head") for n in changed)
    assert any(n.startswith("judge.sam.decoder") for n in changed)
    assert not any(n.startswith("judge.sam.encoder") for n in changed)


def test_a_missing_image_drops_its_tokens():
    """What is left is what a judge of one image finds, with the same prompts, mark and tokens."""
    method = made().eval()
    judge, sam = method.judge, method.judge.sam
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_(std=0.4)
        seen = sam.embedded(batch().image, judge.prompts[0])
        tokens = torch.cat([judge.score, judge.masks[:1]])
        told, (part,) = sam.decoded([seen], tokens, judge.marks[:1])
        score, (mask, none) = judge([batch().image, None])
        assert none is None and mask.std() > 0.01
        torch.testing.assert_close(mask, sam.mask(told[:, 1], part))
        torch.testing.assert_close(score, judge.head(told[:, 0])[:, 0])
    alone = method.maps(batch(further=False))
    torch.testing.assert_close(alone.map, mask.sigmoid())
    both = method.maps(batch())
    assert not alone.further and set(both.further) == {"fundus"}
    assert not torch.allclose(both.map, alone.map)


def test_tokens_see_all_images_in_any_order():
    """Embeddings are keys of one attention: turned around with their marks, tokens say the same."""
    sam = SegmentAnything("tiny", 32, "random")
    one, two, marks = torch.randn(2, 16, 8, 8), torch.randn(2, 16, 8, 8), torch.randn(2, 16)
    tokens = torch.randn(3, 16)
    with torch.no_grad():
        first, (a, b) = sam.decoded([one, two], tokens, marks)
        second, (c, d) = sam.decoded([two, one], tokens, marks.flip(0))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    for ours, other in ((a, d), (b, c)):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-4)


def test_losses_by_their_formulas(monkeypatch):
    """Cross-entropy of the case, and for each image Dice and 20 times the focal loss of its mask."""
    method, cases = made(), batch(8, training=True)
    judged, planted = [], []

    def watched(images):
        judged.append(type(method.judge).forward(method.judge, images))
        planted.append(images)
        return judged[-1]

    monkeypatch.setattr(method.judge, "forward", watched)
    terms = method.loss(cases, "train", "network")
    score, logits = judged[0]
    masks = [
        (new != old).any(1, keepdim=True)
        for new, old in zip(planted[0], (cases.image, cases.further["fundus"]), strict=True)
    ]
    ill = [mask.flatten(1).any(1) for mask in masks]
    assert torch.equal(ill[0], ill[1]) and 0 < ill[0].sum() < len(cases)
    wanted = F.binary_cross_entropy_with_logits(score, ill[0].float())
    torch.testing.assert_close(terms["score"], wanted)
    for name, mask, found in zip(("image", "fundus"), masks, logits, strict=True):
        p = found.sigmoid()
        q = torch.where(mask, p, 1 - p)
        focal = ((1 - q) ** 2 * -q.log()).mean()
        torch.testing.assert_close(terms[f"focal_{name}"], 20 * focal, rtol=1e-3, atol=1e-5)
        both, all_of_it = (p * mask).flatten(1).sum(1), (p + mask.float()).flatten(1).sum(1)
        dice = (1 - (2 * both + 1) / (all_of_it + 1)).mean()
        torch.testing.assert_close(terms[f"dice_{name}"], dice, rtol=1e-4, atol=1e-5)


def test_it_says_what_it_needs():
    with pytest.raises(ArgumentError, match="give it a column further_<name>"):
        made(further=())
    three = made(further=(("fundus", 3), ("depth", 1)), prompts=0).eval()
    cases = batch()
    cases.further["depth"] = torch.rand(4, 1, 32, 32)
    found = three.maps(cases)
    assert list(found.further) == ["fundus", "depth"] and three.judge.prompts.numel() == 0
