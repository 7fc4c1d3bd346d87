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
from normscan.networks.taps import import_timm, import_transformers
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


def test_timms_transformer_and_a_bert_beside_each_other(tmp_path: Path):
    """A file as BiomedCLIP's: what both libraries make of images and sentences is the same."""
    shape, transformers = SHAPES["tiny-bert"], import_transformers()
    torch.manual_seed(4)
    trunk = import_timm().create_model(
        "vit_base_patch16_224", img_size=32, patch_size=4, embed_dim=32, depth=4, num_heads=2,
        num_classes=0,
    )  # fmt: skip
    config = transformers.BertConfig(
        vocab_size=shape.vocabulary, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    bert = transformers.BertModel(config, add_pooling_layer=False)
    head, first, second = (
        torch.nn.Linear(a, b, bias=False) for a, b in ((32, 16), (16, 16), (16, 16))
    )
    for part in (trunk.eval(), bert.eval()):
        with torch.no_grad():
            for parameter in part.parameters():
                parameter.normal_(std=0.2)
    state = {f"visual.trunk.{k}": v for k, v in trunk.state_dict().items()}
    state |= {f"text.transformer.{k}": v for k, v in bert.state_dict().items()}
    state |= {
        "visual.head.proj.weight": head.weight, "text.proj.0.weight": first.weight,
        "text.proj.2.weight": second.weight,
    }  # fmt: skip
    torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
    letters = [chr(i) for i in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tower = Tower("tiny-bert", str(tmp_path / "open_clip_pytorch_model.bin"))
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        seen = tower.eye.joined(tower.eye.layers(image, ())[1][:, 0])
        torch.testing.assert_close(seen, head(trunk((image - mean) / std)), rtol=1e-3, atol=1e-4)
        ids = tower.ids(["a brain", "no tumour"])
        states = bert(ids, attention_mask=(ids != 0).long()).last_hidden_state[:, 0]
        said = second(F.gelu(first(states)))
    told = tower.told([["a brain"], ["no tumour"]])
    torch.testing.assert_close(told, F.normalize(said, dim=1), rtol=1e-3, atol=1e-4)
    assert ids[0, 0] == 2 and (ids[0] != 0).sum() == 2 + 6
    with pytest.raises(ArgumentError, match="PubMedCLIP"):
        _ = tower.tongue


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A tiny SigLIP of transformers in its file, a tokeniser trained on a few sentences beside it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    transformers, shape = import_transformers(), SHAPES["tiny-siglip"]
    both = {
        "hidden_size": shape.width, "intermediate_size": shape.hidden, "num_attention_heads": shape.heads,
    }  # fmt: skip
    config = transformers.SiglipConfig(
        vision_config={**both, "num_hidden_layers": shape.layers, "image_size": 32, "patch_size": 4},
        text_config={
            **both, "num_hidden_layers": shape.text_layers, "vocab_size": shape.vocabulary,
            "max_position_embeddings": 64, "projection_size": shape.joint,
        },
    )  # fmt: skip
    torch.manual_seed(5)
    made = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("siglip")
    state = {k: v.contiguous() for k, v in made.state_dict().items() if "position_ids" not in k}
    save_file(state, folder / "model.safetensors")
    words = Tokenizer(models.Unigram())
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    words.train_from_iterator(
        ["a photo of a brain", "a brain mri with a tumour", "no tumour in the brain"],
        trainers.UnigramTrainer(
            vocab_size=shape.vocabulary, special_tokens=["<pad>", "</s>", "<unk>"],
            unk_token="<unk>", show_progress=False,
        ),
    )  # fmt: skip
    words.save(str(folder / "tokenizer.json"))
    return made, words, folder


def test_siglips_towers_are_those_of_transformers(siglip):
    """Patches of each block, what is gathered of them, sentences, and the logits they were trained by."""
    made, words, folder = siglip
    tower = Tower("tiny-siglip", str(folder))
    image, sentences = torch.rand(2, 3, 32, 32), ["A photo of a brain.", "A brain MRI, no tumour!"]
    plain = ["a photo of a brain", "a brain mri no tumour"]
    ids = tower.ids(sentences)
    for row, sentence in zip(ids.tolist(), plain, strict=True):
        known = words.encode(sentence).ids
        assert row == [*known, *[1] * (64 - len(known))] and 2 not in known
    with torch.no_grad():
        theirs = made.vision_model(2 * image - 1, output_hidden_states=True)
        layers, last, grid = tower.eye.layers(image, (1, 4))
        said = made.text_model(ids).pooler_output
        both = made(input_ids=ids, pixel_values=2 * image - 1)
    assert grid == (8, 8)
    for ours, i in zip(layers, (1, 4), strict=True):
        torch.testing.assert_close(ours[:, 1:], theirs.hidden_states[i], rtol=1e-3, atol=1e-4)
    seen = tower.eye.joined(last[:, 0])
    torch.testing.assert_close(seen, theirs.pooler_output, rtol=1e-3, atol=1e-4)
    told = tower.told([[s] for s in sentences])
    torch.testing.assert_close(told, F.normalize(said, dim=1), rtol=1e-3, atol=1e-4)
    cosines = F.normalize(seen, dim=1) @ told.T
    logits = made.logit_scale.exp() * cosines + made.logit_bias
    torch.testing.assert_close(logits, both.logits_per_image, rtol=1e-3, atol=1e-3)


def test_siglips_places_fit_another_grid(siglip):
    """Without a class token, on more patches, as transformers interpolates them."""
    made, _, folder = siglip
    eye = Tower("tiny-siglip", str(folder)).eye
    with torch.no_grad():
        assert eye.layers(torch.rand(1, 1, 40, 24), (4,))[2] == (10, 6)
        assert not eye.enter(torch.rand(1, 3, 32, 32))[0][:, 0].any()
        large = torch.rand(1, 3, 64, 64)
        ours = eye.enter(large)[0][:, 1:]
        theirs = made.vision_model.embeddings(2 * large - 1, interpolate_pos_encoding=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method", ["winclip", "winclip_plus", "mcm", "medical_vlm_ood", "inctrl", "mvfa"]
)
def test_methods_take_siglip(siglip, method):
    """Maps and scores that hang on the picture, from the tiny towers in a folder."""
    from tests.support.needs import batch_for

    from normscan.registry import card

    _, _, folder = siglip
    options = {"tower": "tiny-siglip", "weights": str(folder)}
    made = card(method).create(**card(method).arguments("tiny", **options)).eval()
    found = made.maps(batch_for(made, 3, 1, (32, 32), 0, False))
    for value in (found.map, found.score):
        assert value is None or (
            torch.isfinite(value).all() and value.flatten(1 - value.dim()).std() > 0
        )


def test_siglip_names_what_lacks_and_whose_words_it_cannot_learn(
    siglip, tmp_path: Path, monkeypatch
):
    _, _, folder = siglip
    with pytest.raises(ArgumentError, match=r"a BERT or SigLIP's.*PubMedCLIP"):
        _ = Tower("tiny-siglip", str(folder)).tongue
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(WeightsError, match=r"lacks tokenizer.json.*google/medsiglip-448"):
        Tower("MedSigLIP", str(tmp_path))
    shape = SHAPES["MedSigLIP"]
    assert (shape.pixels, shape.patch, shape.pixels // shape.patch) == (448, 14, 32)
