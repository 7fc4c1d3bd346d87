"""Stable Diffusion from real files: what its own libraries write, real tokens, their sampler."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError
from normscan.methods.base import Batch
from normscan.networks import sources, stable
from normscan.networks.backbones import weights_from_state
from normscan.networks.diffusion import Walker
from normscan.networks.stable import Clip, StableDiffusion, known_of
from normscan.registry import card
from normscan.rng import Rng

diffusers = pytest.importorskip("diffusers")
stable.import_diffusers()  # before transformers: it declares what torchvision may lack
import transformers  # noqa: E402

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]


def write_tokeniser(folder: Path) -> list[str]:
    """Write vocabulary and merges of letters and three words; return the words of the vocabulary."""
    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "br", "ai", "ain</w>", "brain</w>", "sc"]
    words += ["an</w>", "scan</w>"]
    merges = ["b r", "a i", "ai n</w>", "br ain</w>", "s c", "a n</w>", "sc an</w>"]
    words += [f"unused{i}" for i in range(512 - len(words))] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return words


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A folder that diffusers and transformers wrote, with other weights than a new network's."""
    folder, known = (
        tmp_path_factory.mktemp("stable") / "stable",
        known_of("Stable Diffusion", "tiny"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        diffusers.UNet2DConditionModel(**known.unet).save_pretrained(folder / "unet")
        diffusers.AutoencoderKL(**known.coder).save_pretrained(folder / "vae")
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**known.text))
    text.save_pretrained(folder / "text_encoder")
    write_tokeniser(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def loaded(pipeline):
    return StableDiffusion("tiny", str(pipeline))


def test_a_folder_is_what_its_libraries_make_of_it(loaded, pipeline):
    theirs = (
        diffusers.UNet2DConditionModel.from_pretrained(pipeline / "unet"),
        diffusers.AutoencoderKL.from_pretrained(pipeline / "vae"),
        transformers.CLIPTextModel.from_pretrained(pipeline / "text_encoder"),
    )
    for ours, other in zip((loaded.unet, loaded.coder, loaded.text), theirs, strict=True):
        for (name, a), b in zip(
            ours.state_dict().items(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(a, b), name
    assert all(not p.requires_grad for p in loaded.parameters())


def test_tokens_are_those_of_the_files(loaded, pipeline):
    words = json.loads((pipeline / "tokenizer" / "vocab.json").read_text())
    found = loaded.ids(["Brain scan of a", ""])
    assert found.shape == (2, 77)
    expected = [
        words[w] for w in ("<|startoftext|>", "brain</w>", "scan</w>", "o", "f</w>", "a</w>")
    ]
    assert found[0, :6].tolist() == expected
    assert (found[0, 6:] == 513).all() and (found[1, 1:] == 513).all()


def test_older_names_of_the_text_tower_are_read(loaded, pipeline, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(pipeline, tmp_path / "old")
    path = tmp_path / "old" / "text_encoder" / "model.safetensors"
    state = {k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    state["embeddings.position_ids"] = torch.arange(77)
    save_file({f"text_model.{k}": v for k, v in state.items()}, path)
    again = StableDiffusion("tiny", str(tmp_path / "old"))
    ids = loaded.ids(["brain"])
    assert torch.equal(again.told(ids), loaded.told(ids))


def test_memory_is_told_before_loading(pipeline, capsys):
    numbers = sum(p.numel() for p in StableDiffusion("tiny", "random").parameters())
    assert capsys.readouterr().err == ""
    StableDiffusion("tiny", str(pipeline))
    assert f"{numbers / 1e6:.0f} million weights" in capsys.readouterr().err


def test_what_a_folder_lacks_is_named(pipeline, tmp_path):
    shutil.copytree(pipeline, tmp_path / "part")
    (tmp_path / "part" / "tokenizer" / "merges.txt").unlink()
    (tmp_path / "part" / stable.CODER).unlink()
    with pytest.raises(WeightsError, match=r"lacks vae/diffusion.*, tokenizer/merges\.txt"):
        StableDiffusion("tiny", str(tmp_path / "part"))


def test_offline_all_files_are_named(monkeypatch):
    def refuse(repository, name, filename):
        raise WeightsError("no network")

    monkeypatch.setattr(stable, "hub_file", refuse)
    with pytest.raises(WeightsError, match=r"unet/diffusion.*text_encoder/model.*vocab\.json"):
        StableDiffusion("CompVis/stable-diffusion-v1-4")


def test_the_hub_is_asked_for_each_file(monkeypatch, pipeline):
    asked = []

    def fetched(repository, name, filename):
        asked.append((repository, filename))
        return pipeline / filename

    monkeypatch.setattr(stable, "hub_file", fetched)
    StableDiffusion("tiny")
    assert [f for _, f in asked][:2] == [stable.UNET, stable.CODER] and len(asked) == 5
    assert sources.hub_file is not fetched


def test_another_version_is_refused(tmp_path, pipeline):
    shutil.copytree(pipeline, tmp_path / "other")
    wide = {**known_of("Stable Diffusion", "tiny").unet, "cross_attention_dim": 24}
    diffusers.UNet2DConditionModel(**wide).save_pretrained(tmp_path / "other" / "unet")
    with pytest.raises(WeightsError, match=r"doesn't fit tiny: .*to_k\.weight"):
        StableDiffusion("tiny", str(tmp_path / "other"))


def test_unknown_names_are_told():
    with pytest.raises(ArgumentError, match="Did you mean"):
        StableDiffusion("stable-diffusion-v1-5/stable-diffusion-v1-6", "random")
    with pytest.raises(ArgumentError, match="openai/clip"):
        Clip("openai", "random", ["a"])


def test_a_saved_detector_brings_weights_and_needs_no_files():
    with weights_from_state():
        made = StableDiffusion("tiny", "folder that is no more")
    assert made.tokens is None and not made.ids(["brain"]).any()


@pytest.mark.parametrize(
    ("part", "numbers"), [("unet", 859_520_964), ("coder", 83_653_863), ("text", 123_060_480)]
)
def test_the_real_one_has_the_published_numbers(part, numbers):
    known = known_of("Stable Diffusion", "CompVis/stable-diffusion-v1-4")
    with torch.device("meta"):
        made = {
            "unet": lambda: diffusers.UNet2DConditionModel(**known.unet),
            "coder": lambda: diffusers.AutoencoderKL(**known.coder),
            "text": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**known.text)),
        }[part]()
    assert sum(p.numel() for p in made.parameters()) == numbers


def test_the_walk_is_that_of_diffusers(loaded):
    """DDIM by its scheduler, with guidance, where its last step ends at the clean code."""
    theirs = diffusers.DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=True
    )
    theirs.set_timesteps(10)
    code = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    contexts = loaded.told(loaded.ids(["", "brain scan"]))
    s = loaded.schedule.respaced([0, 100, 200])

    def predict(noisy, t):
        said = loaded.guided(noisy, s.times[t], contexts, 3.0)
        return s.guess("epsilon", said, noisy, t, clip=False)

    with torch.no_grad():
        found, expected = Walker(s, predict).down(code), code
        for step in theirs.timesteps[-3:]:
            empty, wanted = (
                loaded.unet(expected, step, c.expand(2, -1, -1)).sample for c in contexts[:, None]
            )
            expected = theirs.step(empty + 3 * (wanted - empty), step, expected).prev_sample
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_code_and_image_are_those_of_the_autoencoder(loaded):
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = loaded.coder.encode(2 * image - 1).latent_dist
        torch.testing.assert_close(loaded.encode(image), 0.18215 * expected.mean)
        back = loaded.coder.decode(expected.mean).sample
        torch.testing.assert_close(
            loaded.decode(loaded.encode(image)), (back / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-4
        )
        zero = loaded.encode(image, torch.zeros_like(expected.mean))
    assert torch.equal(zero, loaded.encode(image))


def test_clip_is_that_of_transformers(tmp_path):
    known = known_of("CLIP", "tiny")
    config = transformers.CLIPConfig(
        text_config=known.text, vision_config=known.image, projection_dim=16
    )
    whole = transformers.CLIPModel(config).eval()
    whole.save_pretrained(tmp_path / "clip")
    write_tokeniser(tmp_path / "files")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "files" / name, tmp_path / "clip" / name)
    prompts = ["brain scan", "a brain"]
    ours = Clip("tiny", str(tmp_path / "clip"), prompts)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels = (image - ours.mean) / ours.std
    ids = stable.tokeniser(known.length, tmp_path / "clip")(prompts)
    with torch.no_grad():
        found, patches = ours(image, 32)
        out = whole(input_ids=ids, pixel_values=pixels)
    torch.testing.assert_close(found, F.normalize(out.image_embeds, dim=1))
    torch.testing.assert_close(ours.prompted, F.normalize(out.text_embeds, dim=1))
    assert patches.shape == (2, 8, 8, 16)
    torch.testing.assert_close(patches.norm(dim=3), torch.ones(2, 8, 8))
    assert ours(torch.rand(1, 3, 50, 41), 30)[1].shape == (1, 7, 7, 16)


def test_a_method_is_rebuilt_from_its_state_alone(pipeline, tmp_path):
    """Its prompts are known by their tokens: neither weights nor tokeniser are there any more."""
    folder = tmp_path / "moved"
    shutil.copytree(pipeline, folder)
    entry = card("one_to_normal")
    arguments = entry.arguments("tiny", stable_weights=str(folder))
    method = entry.create(**arguments).eval()
    assert method.ids[1].unique().numel() > 5
    shutil.rmtree(folder)
    with weights_from_state():
        again = entry.create(**arguments).eval()
    again.load_weights(method.state_dict())
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    inside = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    first, second = (
        m.maps(Batch(image, inside, Rng([3]), torch.tensor([0.5]))) for m in (method, again)
    )
    assert torch.equal(first.map, second.map) and torch.equal(first.score, second.score)
