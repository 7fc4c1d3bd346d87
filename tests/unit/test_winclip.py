"""WinCLIP's windows, its harmonic means and its references; the table of sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import hmean

from normscan.errors import ArgumentError
from normscan.methods.base import Batch
from normscan.methods.vision_language.winclip import harmonic, windows
from normscan.methods.vision_language.wording import concepts_of, wording
from normscan.networks.towers import Tower
from normscan.registry import card
from normscan.rng import Rng


def batch(n: int, seed: int) -> Batch:
    image = torch.rand(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
    return Batch(image, torch.ones(n, 1, 32, 32).bool(), Rng(list(range(n))), torch.zeros(n))


def test_a_patch_takes_the_harmonic_mean_of_its_windows():
    places = windows((4, 5), 2)
    scores = torch.rand(2, len(places), generator=torch.Generator().manual_seed(0)) + 0.1
    found = harmonic(scores, places, 20)
    for patch in range(20):
        over = (places == patch).any(1)
        assert len(places) == 12 and 1 <= over.sum() <= 4
        wanted = hmean(scores[:, over].numpy(), axis=1)
        torch.testing.assert_close(found[:, patch], torch.from_numpy(wanted))


def test_a_window_sees_its_own_patches_alone():
    """What lies outside of it changes nothing."""
    method = card("winclip").create(**card("winclip").arguments("tiny"))
    first, second = batch(1, 1).image, batch(1, 2).image
    second[:, :, :12, :12] = first[:, :, :12, :12]  # three by three patches of four pixels
    a, b = (method.seen(x)[0] for x in (first, second))
    torch.testing.assert_close(a[1][:, 0], b[1][:, 0])
    assert (a[1][:, -1] - b[1][:, -1]).abs().max() > 1e-3
    tokens, _ = method.seen.eye.enter(first)
    kept = [0, *(1 + windows((8, 8), 3)[0]).tolist()]
    alone = method.seen.eye.joined(method.seen.eye.transformer(tokens[:, kept])[:, 0])
    torch.testing.assert_close(a[1][:, 0], alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_references_changes_nothing():
    method = card("winclip_plus").create(**card("winclip_plus").arguments("tiny"))
    references, image = batch(4, 1), batch(2, 5)
    method.fit([references])
    first = method.maps(image)
    turned = batch(4, 1)
    turned.image = turned.image.flip(0)
    method.fit([turned])
    second = method.maps(image)
    torch.testing.assert_close(first.map, second.map)
    torch.testing.assert_close(first.score, second.score)
    method.fit([batch(2, 5), references])  # what it knows by heart has no distance left
    by_words = card("winclip").create(**card("winclip").arguments("tiny"))
    by_words.load_state_dict(method.state_dict(), strict=False)
    torch.testing.assert_close(
        method.maps(image).map, by_words.maps(image).map, rtol=1e-3, atol=1e-4
    )


def test_the_articles_sentences():
    words = wording("brain MRI", medical=False)
    healthy, ill = words.ensembles("photo")
    assert (len(healthy), len(ill)) == (7 * 22, 4 * 22)
    assert "a photo of a brain MRI with defect." in ill
    assert all(len(set(frames)) == n for frames, n in (
        (words.templates["photo"], 22), (words.templates["varied"], 35)
    ))  # fmt: skip
    more, _ = wording("brain MRI").ensembles("photo")
    assert set(healthy) < set(more)
    free, _ = wording("left knee MRI").ensembles("photo")
    assert "a photo of a flawless left knee MRI." in free
    told = Tower("tiny", "random").told(words.ensembles("photo"))
    torch.testing.assert_close(told.norm(dim=1), torch.ones(2))


def test_a_table_of_ones_own(tmp_path: Path):
    table = tmp_path / "prompts.toml"
    table.write_text('[objects.knee]\nobject = "knee MRI"\nill = ["{} with tear"]\n')
    assert wording("knee", str(table)).ill[-1] == "{} with tear"
    assert wording("brain MRI", str(table)).object == "brain MRI"
    table.write_text('[objects.knee]\nobject = "knee"\nill = ["tear"]\n')
    with pytest.raises(ArgumentError, match="needs an object"):
        wording("knee", str(table))
    table.write_text("[object.knee]\n")
    with pytest.raises(ArgumentError, match=r"unknown part 'object'.*objects"):
        wording("knee", str(table))
    with pytest.raises(ArgumentError, match="can't be read"):
        wording("knee", str(tmp_path / "none.toml"))


def test_an_image_is_compared_with_two_classes_at_least():
    with pytest.raises(ArgumentError, match="--classes"):
        concepts_of(wording("left knee MRI"), (), "left knee MRI")
    assert concepts_of(wording("left knee MRI"), ("a", "b"), "") == ("a", "b")
