"""The systems on Stable Diffusion against direct computations, with tiny random networks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from skimage.filters import threshold_otsu
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.diffusion.branched import parted_by_variance
from normscan.methods.diffusion.described import place_of, turned_prompt
from normscan.methods.diffusion.personalised import HEALTHY_WORDS, ILL_WORDS, prompts_of
from normscan.networks.branches import BranchAttention, CrossAttention, LowRank, adapt
from normscan.networks.stable import StableDiffusion, colours
from normscan.registry import card
from normscan.rng import Rng


def tiny(id, **changes):
    made = card(id)
    torch.manual_seed(0)
    return made.create(**{**made.arguments("tiny"), **changes}).eval()


def batch(n=2, channels=1, lesion=False, seed=0):
    g = torch.Generator().manual_seed(seed)
    foreground = torch.zeros(n, 1, 32, 32, dtype=torch.bool)
    foreground[:, :, 8:24, 8:24] = True
    b = Batch(
        torch.rand(n, channels, 32, 32, generator=g), foreground, Rng(list(range(n))),
        torch.full((n,), 0.5),
    )  # fmt: skip
    if lesion:
        b.lesion = torch.zeros_like(foreground)
        b.lesion[:, :, 10:16, 9:20] = True
        b.label = torch.ones(n)
    return b


def test_colours_are_kept_or_the_mean():
    one, three, two = (torch.rand(2, c, 4, 4) for c in (1, 3, 2))
    assert torch.equal(colours(three), three)
    for x in (one, two):
        assert torch.equal(colours(x)[:, 2], x.mean(1)) and colours(x).shape[1] == 3


# --- attention


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return StableDiffusion("tiny", "random").eval().unet


def test_a_look_changes_nothing_and_sums_to_one(unet):
    x, told = torch.randn(2, 4, 16, 16), torch.randn(2, 77, 16)
    t = torch.tensor([3, 800])
    with torch.no_grad():
        before = unet(x, t, encoder_hidden_states=told).sample
        look = CrossAttention(unet, 8)
        after = unet(x, t, encoder_hidden_states=told).sample
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    share = look.taken()
    assert share.shape == (2, 8, 8, 77) and not look.kept
    torch.testing.assert_close(share.sum(3), torch.ones(2, 8, 8))


def test_branches_that_share_nothing_are_the_attention_itself(unet):
    """Low-rank changes begin at zero, so only what both branches share moves a new network."""
    attn = unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1")
    x = torch.randn(6, 9, 16)
    made = BranchAttention(16, 16, 4)
    with torch.no_grad():
        before = attn(x)
        assert not torch.allclose(made(attn, x), before)
        for p in made.back.parameters():
            p.zero_()
        torch.testing.assert_close(made(attn, x), before, atol=1e-5, rtol=1e-4)


def test_adapted_text_begins_as_it_was():
    torch.manual_seed(0)
    stable = StableDiffusion("tiny", "random").eval()
    ids = stable.ids(["a brain"])
    before = stable.told(ids)
    adapt(stable.text, 4)
    assert torch.equal(stable.told(ids), before)
    assert sum(isinstance(m, LowRank) for m in stable.text.modules()) == 8


# --- one_to_normal


def test_prompts_are_every_frame_with_every_word():
    healthy = prompts_of(HEALTHY_WORDS, "brain")
    assert len(healthy) == len(set(healthy)) == 15 and "a scan of a healthy brain" in healthy
    assert not set(healthy) & set(prompts_of(ILL_WORDS, "brain"))


def test_distances_and_words_by_hand():
    method, b = tiny("one_to_normal"), batch()
    method.fit([dataclasses.replace(batch(seed=k), rng=Rng(k)) for k in (5, 6)])
    assert method.bank.shape == (3 * 64, 16)
    own = torch.rand(2, 3, 32, 32)
    method.healthy = lambda x, b: own
    found = method.maps(b)
    with torch.no_grad():
        whole, patches = method.clip(colours(b.image), 32)
        _, others = method.clip(own, 32)
    for i in range(2):
        p, o = patches[i].reshape(64, 16).double().numpy(), others[i].reshape(64, 16).numpy()
        near = (1 - (p @ method.bank.double().numpy().T).max(1)) / 2
        apart = (1 - (p * o).sum(1)) / 2
        low = near + 0.5 * apart
        healthy, ill = (
            F.normalize(q.mean(0), dim=0).double().numpy() for q in method.clip.prompted.chunk(2)
        )
        w = whole[i].double().numpy()
        words = 1 / (1 + np.exp(100 * (w @ healthy - w @ ill)))
        assert float(found.score[i]) == pytest.approx(words + low.max(), rel=1e-4)
        large = F.interpolate(
            torch.tensor(low.reshape(1, 1, 8, 8)), (32, 32), mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(found.map[i].double(), large[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(found.reconstruction, own.mean(1, keepdim=True))


def test_it_starts_at_three_tenths_of_the_schedule():
    method, seen = tiny("one_to_normal", sample_steps=4), []
    said = method.stable.said
    method.stable.said = lambda x, t, c: seen.append(int(t[0])) or said(x, t, c)
    with torch.no_grad():
        method.healthy(torch.rand(1, 3, 32, 32), batch(1))
    assert seen == [299, 199, 100, 0]


# --- anomaly_any


def test_the_place_of_a_word():
    prompt = torch.tensor([90, 5, 6, 7, 8, 6, 9, 91, 91])
    assert place_of(torch.tensor([90, 6, 9, 91, 91]), prompt) == 5
    with pytest.raises(ArgumentError, match="doesn't hold"):
        place_of(torch.tensor([90, 9, 6, 91, 91]), prompt)
    with pytest.raises(ArgumentError, match="doesn't hold"):
        place_of(torch.tensor([90, 91, 91, 91]), prompt)


def test_the_prompt_turns_at_the_word_alone_towards_the_detail():
    g = torch.Generator().manual_seed(0)
    told, detailed, healthy = torch.randn(3, 2, 6, 8, generator=g)

    def away(x):
        apart = x[:, 3] - healthy[:, 3]
        return 1 - F.cosine_similarity(apart, (detailed - healthy).mean(1), dim=1)

    found = turned_prompt(told, detailed, healthy, 3, 20)
    assert (away(found) < away(told)).all()
    assert torch.equal(turned_prompt(told, detailed, healthy, 3, 0), told)
    kept = [0, 1, 2, 4, 5]
    assert torch.equal(found[:, kept], told[:, kept])


def test_a_move_follows_the_gradient_of_its_cost():
    """By finite differences, early, where only attention counts, and late, where CLIP does too."""
    method = tiny("anomaly_any", sample_steps=4).double()
    p = method.painting
    code, t = torch.randn(1, 4, 16, 16).double(), torch.tensor([100])
    contexts, detailed = method.contexts()
    contexts = contexts.double()
    for step in (1, 3):
        moved, _ = method.moved(code, contexts, detailed, t, step)

        def cost(code, step=step):
            with torch.no_grad():
                lack = 1 - method.looked(code, t, contexts[1:]).max()
                total = 0.5 * step / 4 * lack
                if step > 0.7 * 4:
                    image, _ = method.clip(method.stable.decode(code), p.pixels)
                    total = total + 0.1 * (1 - image @ method.clip.prompted.T).mean()
            return float(total)

        way = torch.randn_like(code)
        slope = (cost(code + 1e-5 * way) - cost(code - 1e-5 * way)) / 2e-5
        rate = 2 * (0.02 - 0.0001 * step)
        assert float(((code - moved) / rate * way).sum()) == pytest.approx(slope, rel=1e-3)


def test_a_push_makes_the_word_seen():
    method, code = tiny("anomaly_any"), torch.randn(1, 4, 16, 16)
    t = torch.tensor([299])
    contexts, _ = method.contexts()
    before = float(method.looked(code, t, contexts[1:]).max())
    assert before < 0.05
    pushed = method.pushed(code, t, contexts[1:], 0.1**0.5)
    if not torch.equal(pushed, code):  # where it looks at it in few cells already, nothing is done
        assert float(method.looked(pushed, t, contexts[1:]).max()) > before


def test_outside_the_foreground_the_healthy_image_returns():
    """With a decoder that shows codes, what lies outside is the healthy image's code."""
    method, b = tiny("anomaly_any", sample_steps=2), batch(1)
    shown = []
    method.stable.decode = lambda code: shown.append(code) or torch.rand(1, 3, 32, 32)
    image, mask = method.pair(b)
    assert image.shape == (1, 3, 32, 32) and mask.dtype == torch.bool
    assert mask.any() and not mask[~b.foreground].any()
    with torch.no_grad():
        source = method.stable.encode(colours(b.image))
    outside = ~b.foreground[:, :, ::2, ::2].expand_as(source)
    # The last noise is that of the schedule's first step.
    assert (shown[-1] - source)[outside].abs().max() < 0.2
    assert (shown[-1] - source)[~outside].abs().mean() > 0.001


# --- what both generate


@pytest.mark.parametrize("id", ["anomaly_any", "dual_ano_diff"])
def test_an_update_generates_one_pair_till_there_are_enough(id):
    method, made = tiny(id, pairs=2), []

    def pair(b):
        made.append(len(b))
        return torch.rand(1, 3, 32, 32), torch.rand(1, 1, 32, 32) > 0.5

    method.pair = pair
    method.train()
    for updates in range(1, 5):
        loss = method.loss(batch(4), "segment", "segmenter")["focal"]
        assert torch.isfinite(loss) and len(made) == min(updates, 2) == int(method.number)
    kept = method.state_dict()
    again = tiny(id, pairs=2)
    again.load_weights(kept)
    assert int(again.number) == 2 and torch.equal(again.images, method.images)


def test_the_segmenter_learns_half_healthy_half_generated():
    method, seen = tiny("anomaly_any", pairs=1), []
    method.pair = lambda b: (torch.ones(1, 3, 32, 32), torch.ones(1, 1, 32, 32) > 0)
    method.segmenter.forward = lambda x: seen.append(x) or torch.zeros(len(x), 2, 32, 32)
    b = dataclasses.replace(batch(400), image=torch.zeros(400, 1, 32, 32), rng=Rng(0))
    loss = method.loss(b, "segment", "segmenter")["focal"]
    generated = seen[0].flatten(1).amin(1) == 1
    assert float(generated.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert float(loss) == pytest.approx(0.25 * np.log(2), rel=1e-3)


# --- dual_ano_diff


def test_the_threshold_is_otsus():
    g = torch.Generator().manual_seed(0)
    x = torch.cat([0.1 * torch.rand(3, 1, 20, 10, generator=g) + 0.2, torch.rand(3, 1, 20, 10)], 3)
    found = parted_by_variance(x)
    for image, ours in zip(x, found, strict=True):
        counts = np.histogram(image.numpy(), 256, (0, 1))[0]
        theirs = threshold_otsu(hist=(counts, (np.arange(256) + 0.5) / 256))
        assert float(ours) == pytest.approx(theirs, abs=1 / 256)


def test_the_second_branch_sees_the_anomaly_on_grey():
    method, b, seen = tiny("dual_ano_diff"), batch(3, lesion=True), []
    encode = method.stable.encode
    method.stable.encode = lambda x: seen.append(x) or encode(x)
    assert torch.isfinite(method.loss(b, "diffuse", "network")["noise"])
    image, alone = seen[0].unflatten(0, (3, 2)).unbind(1)
    turned = [not torch.equal(i[:1], p) for i, p in zip(image, b.image, strict=True)]
    for one, part, lesion, flip in zip(image, alone, b.lesion, turned, strict=True):
        inside = (lesion.flip(-1) if flip else lesion).expand(3, -1, -1)
        assert torch.equal(part[inside], one[inside])
        assert (part[~inside] == 0.5).all()


def test_both_branches_are_noised_to_one_step_by_noises_of_their_own():
    method, b, seen = tiny("dual_ano_diff"), batch(3, lesion=True), []
    method.stable.encode = lambda x: torch.zeros(len(x), 4, 16, 16)

    def unet(x, t, encoder_hidden_states):
        seen.append((x, t, encoder_hidden_states))
        return type("Said", (), {"sample": torch.zeros_like(x)})

    method.stable.unet.forward = unet
    method.loss(b, "diffuse", "network")
    x, t, told = seen[0]
    assert torch.equal(t[::2], t[1::2]) and len(set(t[::2].tolist())) > 1
    assert not torch.allclose(x[::2], x[1::2])
    assert torch.equal(told[0], told[2]) and not torch.equal(told[0], told[1])


def test_what_learns_are_the_changes_alone():
    method = tiny("dual_ano_diff")
    (player,) = method.phases()[0].players
    own = {id(p) for p in player.parameters()}
    names = {n for n, p in method.stable.named_parameters() if p.requires_grad}
    assert own == {id(p) for n, p in method.stable.named_parameters() if n in names}
    assert all(".processor." in n or ".change." in n for n in names)
    assert len(method.state_dict()) == len({v.data_ptr() for v in method.state_dict().values()})
