"""Stable Diffusion and CLIP: built from known configurations, loaded from the hub or a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError, nearest
from normscan.networks.backbones import comes_from_state
from normscan.networks.blocks import pad_to_multiple
from normscan.networks.diffusion import DiffusionSchedule, scaled_linear_betas
from normscan.networks.sources import hub_file, read_weights
from normscan.networks.taps import import_transformers
from normscan.progress import announce

# Mean and deviation of the colours that CLIP was trained on.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Known:
    """What the parts of a network are built from; the arguments of their own libraries.

    Attributes:
        unet: of diffusers' ``UNet2DConditionModel``; empty for CLIP.
        coder: of diffusers' ``AutoencoderKL``; empty for CLIP.
        text: of transformers' ``CLIPTextConfig``.
        image: of transformers' ``CLIPVisionConfig``; empty for Stable Diffusion.
        latent_scale: that a code is multiplied by.
    """

    unet: dict[str, Any]
    coder: dict[str, Any]
    text: dict[str, Any]
    image: dict[str, Any]
    latent_scale: float = 0.18215

    @property
    def length(self) -> int:
        """Tokens of a text."""
        return int(self.text["max_position_embeddings"])


_TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "vocab_size": 49408,
    "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407,
}  # fmt: skip
_V1 = Known(
    {"cross_attention_dim": 768, "sample_size": 64},
    {
        "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "sample_size": 512,
    },
    _TEXT,
    {},
)  # fmt: skip
_TINY_TEXT = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "projection_dim": 16, "vocab_size": 514, "max_position_embeddings": 77, "bos_token_id": 512,
    "eos_token_id": 513,
}  # fmt: skip
STABLE = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _V1,
    "CompVis/stable-diffusion-v1-4": _V1,
    # Two levels for tests: 2 pixels to a cell of the code, attention at half of these.
    "tiny": Known(
        {
            "cross_attention_dim": 16, "sample_size": 16, "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1,
            "attention_head_dim": 2, "norm_num_groups": 4,
        },
        {
            "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2, "layers_per_block": 1, "sample_size": 32,
            "norm_num_groups": 4,
        },
        _TINY_TEXT,
        {},
    ),
}  # fmt: skip
CLIP = {
    "openai/clip-vit-large-patch14": Known(
        {}, {}, _TEXT,
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
        },
    ),
    "tiny": Known(
        {}, {}, _TINY_TEXT,
        {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 32, "patch_size": 4, "projection_dim": 16,
        },
    ),
}  # fmt: skip


def import_diffusers() -> Any:
    """Import diffusers.

    Raises:
        ArgumentError: it is not installed.
    """
    import_transformers()  # declares what torchvision lacks
    try:
        import diffusers
    except ImportError as error:
        raise ArgumentError(
            "Stable Diffusion needs diffusers: pip install 'normscan[stable]'."
        ) from error
    return diffusers


def known_of(kind: Literal["Stable Diffusion", "CLIP"], name: str) -> Known:
    """Return the configuration of a name.

    Raises:
        ArgumentError: unknown; names the nearest one.
    """
    table = STABLE if kind == "Stable Diffusion" else CLIP
    if name not in table:
        raise ArgumentError(
            f"there is no {kind} '{name}'.{nearest(name, table)} Known: {', '.join(table)}."
        )
    return table[name]


Tokens = Callable[[Sequence[str]], Tensor]
UNET, CODER, TEXT = (
    f"{part}/{file}.safetensors"
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    )
)


def located(name: str, weights: str, files: Sequence[str]) -> list[Path]:
    """Where the files of a network are.

    Args:
        name: of its repository on the hub.
        weights: ``hub``, or a folder laid out like the repository.
        files: paths in it.

    Raises:
        WeightsError: some aren't there; names them all.
    """
    if weights != "hub":
        found = [Path(weights) / file for file in files]
        missing = [file for file, path in zip(files, found, strict=True) if not path.is_file()]
        if missing:
            raise WeightsError(
                f"the folder {weights} lacks {', '.join(missing)} of {name}. Copy the repository "
                f"huggingface.co/{name} there as it is, or give hub."
            )
        return found
    try:
        return [hub_file(name, name, file) for file in files]
    except WeightsError as error:
        raise WeightsError(
            f"{name} is not on this machine and can't be fetched. Fetch {', '.join(files)} of "
            f"huggingface.co/{name} on a machine with access, keep the folders, and give the path "
            "of the whole instead of hub."
        ) from error


def fill(network: nn.Module, path: Path, name: str) -> None:
    """Load a part's weights, also under the names of older releases of transformers.

    Raises:
        WeightsError: tensors are missing or of another shape.
    """
    given, state = read_weights(path, name), {}
    for key, wanted in network.state_dict().items():
        for other in (key, f"text_model.{key}", key.removeprefix("text_model.")):
            if other in given and given[other].shape == wanted.shape:
                state[key] = given[other]
                break
        else:
            raise WeightsError(
                f"{path} doesn't fit {name}: '{key}' of shape {tuple(wanted.shape)} is missing."
            )
    network.load_state_dict(state)


def tokeniser(length: int, folder: Path | None) -> Tokens:
    """Prompts to their tokens (N, length), padded to the length of the text tower.

    Args:
        length: tokens of a text.
        folder: with ``vocab.json`` and ``merges.txt``; None for one of bytes, for random weights.
    """
    transformers = import_transformers()
    if folder is None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        letters = list(bytes_to_unicode().values())
        words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
        made = transformers.CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[])
    else:
        made = transformers.CLIPTokenizer(
            vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
        )

    def tokens(prompts: Sequence[str]) -> Tensor:
        found: Tensor = made(
            list(prompts), padding="max_length", max_length=length, truncation=True,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return found

    return tokens


def announced(name: str, *parts: nn.Module) -> None:
    """Say how much memory the weights of parts will take, before they are loaded."""
    numbers = sum(p.numel() for part in parts for p in part.parameters())
    announce(f"{name}: {numbers / 1e6:.0f} million weights, {4 * numbers / 1e9:.1f} GB of memory")


class StableDiffusion(nn.Module):
    """Stable Diffusion's U-Net, autoencoder and text tower, frozen until someone trains them.

    A saved detector brings the weights of all of them; prompts are then known by their tokens.

    Args:
        name: of the repository on the hub, or ``tiny``.
        weights: ``hub``, a folder laid out like the repository, or ``random`` for tests.

    Attributes:
        factor: pixels to a cell of the code.
        schedule: of the noise, 1000 steps.
        tokens: prompts to tokens; None in what a saved detector is loaded into.

    Raises:
        ArgumentError: unknown name, or diffusers isn't installed.
        WeightsError: files aren't there; names them and where they belong.
    """

    def __init__(self, name: str, weights: str = "hub") -> None:
        super().__init__()
        known = known_of("Stable Diffusion", name)
        diffusers, transformers = import_diffusers(), import_transformers()
        self.tokens: Tokens | None = None
        paths: list[Path] = []
        loads = not comes_from_state() and weights != "random"
        if loads:
            files = [UNET, CODER, TEXT, "tokenizer/vocab.json", "tokenizer/merges.txt"]
            paths = located(name, weights, files)
        with torch.device("meta" if loads else "cpu"):
            self.unet = diffusers.UNet2DConditionModel(**known.unet)
            self.coder = diffusers.AutoencoderKL(**known.coder)
            self.text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**known.text))
        if loads:
            parts = (self.unet, self.coder, self.text)
            announced(name, *parts)
            for part, path in zip(parts, paths, strict=False):
                part.to_empty(device="cpu")
                fill(part, path, name)
                _refresh(part)
        if not comes_from_state():
            self.tokens = tokeniser(known.length, paths[3].parent if loads else None)
        self.factor = 2 ** (len(known.coder["block_out_channels"]) - 1)
        self.scale = known.latent_scale
        self.schedule = DiffusionSchedule(scaled_linear_betas(1000, 0.00085, 0.012), "small")
        self.requires_grad_(False)

    def seen(self, image: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
        """Images of any channels as colours from 0 to 1, padded to what the U-Net takes.

        Returns:
            (B, 3, H, W), and what cuts the padding away.
        """
        levels = len(self.unet.config.block_out_channels)
        return pad_to_multiple(colours(image).clamp(0, 1), self.factor * 2 ** (levels - 1))

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Tokens (N, n) of prompts, zeros where a saved detector will bring them."""
        if self.tokens is None:
            return torch.zeros(len(prompts), self.text.config.max_position_embeddings).long()
        return self.tokens(prompts)

    def told(self, ids: Tensor) -> Tensor:
        """What the U-Net is told by prompts: their states (N, n, D)."""
        result: Tensor = self.text(ids)[0]
        return result

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """The code of images from 0 to 1: its mean, or a sample with a standard normal noise.

        Args:
            image: (B, 3, H, W), sides multiples of ``factor``.
            noise: like the code, (B, 4, H / factor, W / factor).
        """
        found = self.coder.encode(2 * image - 1).latent_dist
        code = found.mean if noise is None else found.mean + found.std * noise
        return self.scale * code

    def decode(self, code: Tensor) -> Tensor:
        """Images from 0 to 1 of codes."""
        image: Tensor = self.coder.decode(code / self.scale).sample
        return ((image + 1) / 2).clamp(0, 1)

    def said(self, noisy: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The noise in noisy codes at the steps t (B,), told a context (B or 1, n, D)."""
        told = context.expand(len(noisy), -1, -1)
        result: Tensor = self.unet(noisy, t, encoder_hidden_states=told).sample
        return result

    def guided(self, noisy: Tensor, t: Tensor, contexts: Tensor, scale: float) -> Tensor:
        """The noise, moved away from what an empty prompt says (Ho and Salimans 2022).

        Args:
            noisy: (B, 4, h, w).
            t: (B,) steps.
            contexts: (2, n, D), of the empty prompt and of the wanted one.
            scale: 1 for the wanted one alone.
        """
        if scale == 1:
            return self.said(noisy, t, contexts[1:])
        empty, wanted = self.said(
            torch.cat([noisy, noisy]), torch.cat([t, t]), contexts.repeat_interleave(len(noisy), 0)
        ).chunk(2)
        return empty + scale * (wanted - empty)


def _refresh(part: nn.Module) -> None:
    """Compute again what a part counts once and never stores: the places of its tokens."""
    for module in part.modules():
        places = getattr(module, "position_ids", None)
        if isinstance(places, Tensor):
            module.position_ids = torch.arange(places.shape[-1]).expand(places.shape)


class Clip(nn.Module):
    """CLIP's image tower, and what its text tower says of prompts (Radford et al. 2021), frozen.

    Args:
        name: of the repository on the hub, or ``tiny``.
        weights: ``hub``, a folder laid out like the repository, or ``random`` for tests.
        prompts: whose features are kept, (prompts, D) of length 1 in ``prompted``.

    Attributes:
        patch: pixels along the side of a patch.
        width: channels of a patch.

    Raises:
        ArgumentError: unknown name.
        WeightsError: files aren't there; names them and where they belong.
    """

    prompted: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str, prompts: Sequence[str]) -> None:
        super().__init__()
        known, transformers = known_of("CLIP", name), import_transformers()
        config = transformers.CLIPVisionConfig(**known.image)
        self.image = transformers.CLIPVisionModelWithProjection(config)
        found = torch.zeros(len(prompts), known.text["projection_dim"])
        if not comes_from_state():
            text = transformers.CLIPTextModelWithProjection(
                transformers.CLIPTextConfig(**known.text)
            )
            folder = None
            if weights != "random":
                files = ["model.safetensors", "vocab.json", "merges.txt"]
                path, vocabulary, _ = located(name, weights, files)
                announced(name, self.image, text)
                fill(self.image, path, name)
                fill(text, path, name)
                folder = vocabulary.parent
            with torch.no_grad():
                text.eval()
                found = F.normalize(
                    text(tokeniser(known.length, folder)(prompts)).text_embeds, dim=1
                )
        self.register_buffer("prompted", found)
        for key, values in (("mean", CLIP_MEAN), ("std", CLIP_STD)):
            self.register_buffer(key, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)
        self.patch, self.width = known.image["patch_size"], known.image["hidden_size"]
        self.requires_grad_(False)

    def forward(self, image: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Features of images from 0 to 1.

        Args:
            image: (B, 3, H, W).
            size: pixels along each side that CLIP sees, cut down to whole patches.

        Returns:
            (B, D) of the image, and (B, n, n, C) of its patches, all of length 1.
        """
        side = size // self.patch
        pixels = F.interpolate(
            image, [side * self.patch] * 2, mode="bicubic", align_corners=False, antialias=True
        )
        found = self.image((pixels - self.mean) / self.std, interpolate_pos_encoding=True)
        patches = F.normalize(found.last_hidden_state[:, 1:], dim=2)
        return F.normalize(found.image_embeds, dim=1), patches.unflatten(1, (side, side))


def colours(image: Tensor) -> Tensor:
    """Images of any number of channels as three: as they are, or the mean of all in each."""
    return image if image.shape[1] == 3 else image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
