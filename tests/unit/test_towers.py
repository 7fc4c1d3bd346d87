"""CLIP's towers beside those of transformers, with equal random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError
from normscan.networks.backbones import weights_from_state
from normscan.networks.stable import CLIP_MEAN, CLIP_STD
from normscan.networks.taps import import_transformers
from normscan.networks.towers import SHAPES, Tower

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def clip():
    """A tiny CLIP of transformers with random weights."""
    transformers = import_transformers()
    vision = {
        "hidden_size": TINY.width, "intermediate_size": 4 * TINY.width,
        "num_hidden_layers": TINY.layers, "num_attention_heads": TINY.heads,
        "image_size": TINY.pixels, "patch_size": TINY.patch,
    }  # fmt: skip
    text = {
        "hidden_size": TINY.text_width, "intermediate_size": 4 * TINY.text_width,
        "num_hidden_layers": TINY.text_layers, "num_attention_heads": TINY.text_heads,
        "vocab_size": TINY.vocabulary, "max_position_embeddings": 77,
        "bos_token_id": 512, "eos_token_id": 513,
    }  # fmt: skip
    config = transformers.CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=TINY.joint
    )
    torch.manual_seed(3)
    made = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


@pytest.fixture(scope="module")
def stored(clip, tmp_path_factory) -> Path:
    """Its file, and a tokeniser beside it."""
    folder = tmp_path_factory.mktemp("clip")
    save_file(
        {k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "model.safetensors"
    )
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def test_images_and_sentences_are_those_of_transformers(clip, stored):
    tower = Tower("tiny", str(stored))
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        theirs = clip.vision_model((image - mean) / std, output_hidden_states=True)
        layers, last, grid = tower.eye.layers(image, (1, 4))
        seen = tower.eye.joined(last[:, 0])
        joined = clip.visual_projection(theirs.pooler_output)
        ids = tower.ids(["a brain", "a damaged brain MRI"])
        said = clip.text_projection(clip.text_model(ids).pooler_output)
    assert grid == (8, 8)
    for ours, i in zip(layers, (1, 4), strict=True):
        torch.testing.assert_close(ours, theirs.hidden_states[i], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(seen, joined, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(tower.tongue(ids), said, rtol=1e-3, atol=1e-4)


def test_names_of_either_library_give_the_same(stored, tmp_path: Path):
    first = Tower("tiny", str(stored / "model.safetensors"))
    own = {f"visual.{k}": v for k, v in first.eye.state_dict().items()}
    save_file(own | dict(first.tongue.state_dict()), tmp_path / "open_clip_model.safetensors")
    for word in ("vocab.json", "merges.txt"):
        (tmp_path / word).write_text((stored / word).read_text())
    second = Tower("tiny", str(tmp_path))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_what_lacks_is_named(stored, tmp_path: Path):
    with pytest.raises(ArgumentError, match="ViT-B-16"):
        Tower("ViT-B16", "random")
    with pytest.raises(WeightsError, match="doesn't fit the tower"):
        Tower("ViT-B-32", str(stored))
    (tmp_path / "model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"lacks vocab.json and merges.txt"):
        Tower("tiny", str(tmp_path))


def test_any_grid_and_any_channels():
    eye = Tower("tiny", "random").eye
    with torch.no_grad():
        same = eye.positions((8, 8))
        assert same is eye.positional_embedding
        assert eye.positions((5, 9)).shape == (46, 32)
        layers, last, grid = eye.layers(torch.rand(2, 2, 21, 38), (2,))
    assert grid == (5, 9) and layers[0].shape == last.shape == (2, 46, 32)


def test_a_stream_of_values_is_as_its_formula_says():
    """The blocks go on as ever, the stream adds softmax(v v' / sqrt(d)) v of their own tokens."""
    torch.manual_seed(0)
    eye, image = Tower("tiny", "random").eye, torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        (one, own), seen, _ = eye.valued(image, (1, 4), first=3)
        plain, whole, _ = eye.layers(image, (1, 2, 3, 4))
        torch.testing.assert_close(seen, whole)
        torch.testing.assert_close(one, plain[0])
        wanted = plain[1]
        for before, block in ((plain[1], 2), (plain[2], 3)):
            part = eye.transformer.resblocks[block]
            mixed = F.linear(part.ln_1(before), part.attn.in_proj_weight, part.attn.in_proj_bias)
            heads = []
            for value in mixed[0, :, 64:].split(16, dim=1):
                heads.append((value @ value.T / 4).softmax(1) @ value)
            wanted = wanted + part.attn.out_proj(torch.cat(heads, 1))
    torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


def test_sentences_are_unit_vectors_and_a_saved_detector_needs_none():
    told = Tower("tiny", "random").told([["a b", "a c"], ["d"]])
    torch.testing.assert_close(told.norm(dim=1), torch.ones(2))
    with weights_from_state():
        assert not Tower("tiny", "hub").told([["a b"], ["d"]]).any()
