"""Segment Anything with prompts of its own: an image encoder and a mask decoder for several images.

Both are those of transformers, under its names; what is done between their layers is here, since
neither takes prompts in its blocks nor tokens that look at several images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscan.errors import ArgumentError, WeightsError, nearest
from normscan.networks.backbones import IMAGENET_MEAN, IMAGENET_STD, comes_from_state
from normscan.networks.sources import loaded
from normscan.networks.stable import announced, colours
from normscan.networks.taps import import_transformers


@dataclass(frozen=True)
class Shape:
    """Sizes of a Segment Anything.

    Attributes:
        width: of the encoder.
        layers: of it.
        heads: of its attention.
        whole: blocks, from 0, whose attention sees the whole image and not a window.
        repository: on the Hugging Face hub; empty where weights are random only.
        patch: pixels along each side of a patch.
        window: patches along each side of a window.
        joint: channels of an embedding, and numbers of a token.
        decoder: heads and hidden numbers of the decoder.
    """

    width: int
    layers: int
    heads: int
    whole: tuple[int, ...]
    repository: str = ""
    patch: int = 16
    window: int = 14
    joint: int = 256
    decoder: tuple[int, int] = (8, 2048)


SHAPES = {
    "sam-vit-base": Shape(768, 12, 12, (2, 5, 8, 11), "facebook/sam-vit-base"),
    "sam-vit-large": Shape(1024, 24, 16, (5, 11, 17, 23), "facebook/sam-vit-large"),
    "sam-vit-huge": Shape(1280, 32, 16, (7, 15, 23, 31), "facebook/sam-vit-huge"),
    # For tests, with weights that are random.
    "tiny": Shape(32, 2, 2, (1,), patch=4, window=3, joint=16, decoder=(2, 32)),
}


def _model(shape: Shape, size: int) -> Any:
    """The whole of transformers' model for images of so many pixels along each side."""
    transformers = import_transformers()
    sides = {"image_size": size, "patch_size": shape.patch}
    vision = {
        "hidden_size": shape.width, "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "global_attn_indexes": list(shape.whole), "window_size": shape.window,
        "output_channels": shape.joint, "num_pos_feats": shape.joint // 2,
        "initializer_range": 0.02, **sides,
    }  # fmt: skip
    decoder = {
        "hidden_size": shape.joint, "num_attention_heads": shape.decoder[0],
        "mlp_dim": shape.decoder[1],
    }  # fmt: skip
    config = transformers.SamConfig(
        vision_config=vision, prompt_encoder_config={"hidden_size": shape.joint, **sides},
        mask_decoder_config=decoder,
    )  # fmt: skip
    return transformers.SamModel(config).eval()


def fitted(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose places are interpolated where they were learnt for another size.

    Args:
        state: of a file; its embedded places (1, h, w, width) and relative ones (2 h - 1, width).
        wanted: the model's own.
    """
    result = dict(state)
    for key, tensor in wanted.items():
        given = state.get(key)
        if given is None or given.shape == tensor.shape:
            continue
        if key.endswith("pos_embed") and given.ndim == 4:
            grid = F.interpolate(
                given.permute(0, 3, 1, 2), tensor.shape[1:3], mode="bicubic", antialias=True
            )
            result[key] = grid.permute(0, 2, 3, 1)
        elif ".rel_pos_" in key:
            line = F.interpolate(given.T[None], len(tensor), mode="linear")
            result[key] = line[0].T
    return result


class SegmentAnything(nn.Module):
    """A frozen image encoder that takes prompts in each block, and a decoder of several images.

    Args:
        name: one of ``SHAPES``.
        size: pixels along each side of an image.
        weights: ``hub``, ``random`` for tests, or the path of a state dict with the names of
            transformers, or of a folder with ``model.safetensors``.

    Attributes:
        encoder: transformers' image encoder.
        decoder: transformers' mask decoder.
        joint: channels of an embedding.

    Raises:
        ArgumentError: unknown name, or a size that is no whole patches.
        WeightsError: weights that aren't there or don't fit; says what to fetch and where to put it.
    """

    mean: Tensor
    std: Tensor
    places: Tensor

    def __init__(self, name: str, size: int, weights: str = "hub") -> None:
        super().__init__()
        if name not in SHAPES:
            raise ArgumentError(
                f"there is no Segment Anything '{name}'.{nearest(name, SHAPES)} Known: "
                f"{', '.join(SHAPES)}."
            )
        shape = SHAPES[name]
        if size % shape.patch:
            raise ArgumentError(f"size {size} is no multiple of {shape.patch}, {name}'s patches.")
        model = _model(shape, size)
        if not comes_from_state() and weights != "random":
            self._load(model, name, shape.repository, weights)
        elif weights == "random":
            self._draw(model)
        self.encoder, self.decoder, self.joint = (
            model.vision_encoder,
            model.mask_decoder,
            shape.joint,
        )
        self.nothing = model.prompt_encoder.no_mask_embed
        # Of four masks the first is the one without alternatives; their quality is not foretold.
        self.decoder.output_hypernetworks_mlps = self.decoder.output_hypernetworks_mlps[:1]
        del self.decoder.iou_prediction_head
        with torch.no_grad():
            self.register_buffer("places", model.get_image_wide_positional_embeddings().clone())
        for key, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(key, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    @staticmethod
    def _load(model: Any, name: str, repository: str, weights: str) -> None:
        if weights == "hub" and not repository:
            raise WeightsError(f"{name} has random weights only: --weights random.")
        announced(name, model)
        wanted = model.state_dict()
        state = fitted(loaded(weights, f"hf:{repository}", wanted), wanted)
        # Points and boxes are not used, and files leave out what is tied to something else.
        needed = [k for k in wanted if not k.startswith("prompt_encoder.") or "no_mask" in k]
        lacking = [k for k in needed if k not in state or state[k].shape != wanted[k].shape]
        if lacking:
            raise WeightsError(
                f"the weights {weights!r} don't fit {name}: {len(lacking)} tensors are missing or of "
                f"another shape, such as '{lacking[0]}'. Give model.safetensors of "
                f"huggingface.co/{repository}, or the folder that holds it."
            )
        model.load_state_dict({k: state.get(k, v) for k, v in wanted.items()} | {
            k: wanted[k] for k in wanted if k not in needed
        })  # fmt: skip

    @staticmethod
    def _draw(model: Any) -> None:
        """Draw the places, which transformers begins with zeros."""
        for key, parameter in model.vision_encoder.named_parameters():
            if "rel_pos" in key or key == "pos_embed":
                nn.init.normal_(parameter, std=0.02)

    def embedded(self, image: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Embeddings (B, joint, h, w) of images.

        Args:
            image: (B, C, H, W), cut off at 0 and 1; other channels than three are averaged.
            prompts: (blocks, n, width) that the patches of each block attend to as well, as deep
                prompts do whose own results are thrown away.
        """
        x = self.encoder.patch_embed((colours(image).clamp(0, 1) - self.mean) / self.std)
        x = x + self.encoder.pos_embed
        for i, layer in enumerate(self.encoder.layers):
            x = _block(layer, x, None if prompts is None else prompts[i])
        result: Tensor = self.encoder.neck(x)
        return result

    def decoded(
        self, embeddings: Sequence[Tensor], tokens: Tensor, marks: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Let tokens and the embeddings of several images look at each other.

        Args:
            embeddings: (B, joint, h, w) of each image.
            tokens: (n, joint) or (B, n, joint).
            marks: (images, joint) that tell the images apart, added to their embeddings.

        Returns:
            The tokens (B, n, joint), and the embeddings enlarged, (B, joint / 8, 4 h, 4 w) each.
        """
        b, _, h, w = embeddings[0].shape
        dense = self.nothing.weight.reshape(1, -1, 1, 1)
        marked = [e + dense for e in embeddings]
        if marks is not None:
            marked = [e + m.reshape(1, -1, 1, 1) for e, m in zip(marked, marks, strict=True)]
        keys = torch.cat([e.flatten(2) for e in marked], 2)[..., None]
        places = self.places.flatten(2).repeat(b, 1, len(marked))[..., None]
        asked = tokens.expand(b, -1, -1)[:, None]
        told, seen = self.decoder.transformer(
            point_embeddings=asked, image_embeddings=keys, image_positional_embeddings=places,
            attention_similarity=None,
        )  # fmt: skip
        parts = seen[:, 0].mT.unflatten(2, (len(marked), h, w)).unbind(2)
        return told[:, 0], [self._enlarged(part) for part in parts]

    def _enlarged(self, x: Tensor) -> Tensor:
        d = self.decoder
        x = d.activation(d.upscale_layer_norm(d.upscale_conv1(x)))
        result: Tensor = d.activation(d.upscale_conv2(x))
        return result

    def mask(self, token: Tensor, enlarged: Tensor) -> Tensor:
        """Logits (B, 1, H, W) of a mask, from its token (B, joint) and an enlarged embedding."""
        weights = self.decoder.output_hypernetworks_mlps[0](token)
        return torch.einsum("bc,bchw->bhw", weights, enlarged)[:, None]


def _block(layer: Any, x: Tensor, prompts: Tensor | None) -> Tensor:
    """A block of the encoder on patches (B, h, w, width), with prompts (n, width) or without."""
    found, side = layer.layer_norm1(x), layer.window_size
    normed = None if prompts is None else layer.layer_norm1(prompts)
    if side:
        windows, padded = layer.window_partition(found, side)
        windows = _attended(layer.attn, windows, normed)
        found = layer.window_unpartition(windows, side, padded, (x.shape[1], x.shape[2]))
    else:
        found = _attended(layer.attn, found, normed)
    x = x + found
    result: Tensor = x + layer.mlp(layer.layer_norm2(x))
    return result


def _attended(attention: Any, x: Tensor, prompts: Tensor | None) -> Tensor:
    """Attention among patches (B, h, w, width), which see prompts (n, width) as well."""
    b, h, w, _ = x.shape
    heads = attention.num_attention_heads
    query, key, value = attention.qkv(x.flatten(1, 2)).unflatten(2, (3, heads, -1)).unbind(2)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    bias = attention.get_decomposed_rel_pos(
        query.flatten(0, 1), attention.rel_pos_h, attention.rel_pos_w, (h, w), (h, w)
    ).reshape(b, heads, h * w, h * w)
    if prompts is not None:
        _, more, told = attention.qkv(prompts).unflatten(1, (3, heads, -1)).unbind(1)
        key = torch.cat([key, more.transpose(0, 1).expand(b, -1, -1, -1)], 2)
        value = torch.cat([value, told.transpose(0, 1).expand(b, -1, -1, -1)], 2)
        bias = F.pad(bias, (0, len(prompts)))
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    result: Tensor = attention.proj(found.transpose(1, 2).flatten(2).unflatten(1, (h, w)))
    return result
