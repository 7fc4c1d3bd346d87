"""Files of CLIP's towers: where they are, and their tensors under the names of ours."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from normscan.errors import WeightsError
from normscan.networks.bert import BERT_WORDS
from normscan.networks.siglip import SIGLIP_WORDS
from normscan.networks.sources import hub_file

WORDS = ("vocab.json", "merges.txt")  # of the tokeniser
WORDS_REPOSITORY = "openai/clip-vit-base-patch32"  # all of CLIP's kin have this tokeniser


def located(
    name: str, repository: str, filename: str, weights: str, kind: str = "clip"
) -> tuple[Path | None, Path | None]:
    """The file of the weights and the folder of the tokeniser; None for random ones.

    Args:
        name: of the tower.
        repository: on the hub, empty where it has none.
        filename: in it.
        weights: as of ``Tower``.
        kind: ``clip``, ``bert`` or ``siglip``, which have tokenisers of their own.

    Raises:
        WeightsError: they aren't there; says what to fetch and where to put it.
    """
    if weights == "random":
        return None, None
    needed, source = {
        "bert": (BERT_WORDS, repository), "siglip": (SIGLIP_WORDS, repository),
    }.get(kind, (WORDS, WORDS_REPOSITORY))  # fmt: skip
    if weights == "hub":
        if not repository:
            raise WeightsError(f"the tower {name} has random weights only: --weights random.")
        words = [hub_file(source, f"{name}'s tokeniser", file) for file in needed]
        return hub_file(repository, name, filename), words[0].parent
    path = Path(weights)
    folder = path if path.is_dir() else path.parent
    file = next(
        (folder / f for f in (filename, "model.safetensors") if (folder / f).is_file()), path
    )
    missing = [word for word in needed if not (folder / word).is_file()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {' and '.join(missing)}, the tokeniser of {name}. Copy "
            f"{' and '.join(needed)} from huggingface.co/{source} beside the weights."
        )
    return (file if path.is_dir() else path), folder


# Names of transformers' CLIP, and what they are in open_clip's.
_PARTS = (
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("layer_norm1.", "ln_1."),
    ("layer_norm2.", "ln_2."),
    ("self_attn.", "attn."),
    ("mlp.fc1.", "mlp.c_fc."),
    ("mlp.fc2.", "mlp.c_proj."),
)


# Names of timm's transformer in a file of open_clip, and what they are in CLIP's.
_TIMM = (
    ("visual.trunk.patch_embed.proj.", "visual.conv1."),
    ("visual.trunk.cls_token", "visual.class_embedding"),
    ("visual.trunk.pos_embed", "visual.positional_embedding"),
    ("visual.trunk.blocks.", "visual.transformer.resblocks."),
    ("visual.trunk.norm.", "visual.ln_post."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)


# What the image tower of SigLIP has at its end, in transformers and here.
_SIGLIP = (
    ("vision_model.head.", "visual.transformer.head."),
    ("vision_model.post_layernorm.", "visual.transformer.ln_post."),
    ("text_model.head.", "head."),
)


def _from_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of timm's transformer beside a BERT under the names of CLIP's image tower."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith("visual."):
            for old, new in _TIMM:
                key = key.replace(old, new)
        result[key] = tensor
    result["visual.proj"] = result.pop("visual.head.proj.weight").mT
    result["visual.class_embedding"] = result["visual.class_embedding"].flatten()
    result["visual.positional_embedding"] = result["visual.positional_embedding"][0]
    return result


def under_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights of transformers' CLIP or of timm under the names of CLIP in open_clip."""
    if any(key.startswith("visual.trunk.") for key in state):
        return _from_timm(state)
    if not any(key.startswith("vision_model.") for key in state):
        return state
    siglip = "vision_model.head.probe" in state
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for old, new in (*(_SIGLIP if siglip else ()), *_PARTS):
            key = key.replace(old, new)
        result[key] = tensor
    for key in [key for key in result if ".q_proj." in key]:
        three = [result.pop(key.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        result[key.replace(".q_proj.", ".in_proj_")] = torch.cat(three)
    if siglip:  # without a class token or a projection, which ours have all the same
        places = result["visual.positional_embedding"]
        nothing = torch.zeros(places.shape[1])
        result["visual.positional_embedding"] = torch.cat([nothing[None], places])
        return result | {"visual.class_embedding": nothing, "visual.proj": torch.eye(len(nothing))}
    for name, own in (("visual_projection", "visual.proj"), ("text_projection", "text_projection")):
        result[own] = result.pop(f"{name}.weight").mT
    return result


def load_towers(eye: nn.Module, tongue: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load both towers from one state dict.

    Args:
        eye: image tower to fill.
        tongue: text tower to fill.
        state: of open_clip or transformers.
        where: it comes from, for the message.

    Raises:
        WeightsError: tensors are missing or of another shape.
    """
    given = under_open_clip(state)
    for part, prefixes in ((eye, ("visual.",)), (tongue, ("text.", ""))):
        found = {}
        for key, wanted in part.state_dict().items():
            fits = [p + key for p in prefixes if p + key in given]
            if not fits or given[fits[0]].shape != wanted.shape:
                raise WeightsError(
                    f"{where} doesn't fit the tower: '{prefixes[0]}{key}' of shape "
                    f"{tuple(wanted.shape)} is missing. Give the file that belongs to its name."
                )
            found[key] = given[fits[0]]
        part.load_state_dict(found)
