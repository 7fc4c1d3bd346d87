"""Textures to plant into images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from normscan.errors import ArgumentError
from normscan.rng import Rng
from normscan.synthesis.perlin import shuffled_tiles


class Textures:
    """Textures to plant: pictures of a folder, or the training images themselves, rearranged.

    Args:
        folder: searched with its subfolders when they are first needed, so that a trained detector
            needs none; empty for textures made of the batch.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._found: list[Path] | None = None

    def files(self) -> list[Path]:
        """The pictures of the folder.

        Raises:
            ArgumentError: there are none.
        """
        if self._found is None:
            from normscan.io import EXTENSIONS

            paths = sorted(Path(self.folder).rglob("*")) if self.folder else []
            self._found = [p for p in paths if p.name.lower().endswith(EXTENSIONS)]
        if self.folder and not self._found:
            raise ArgumentError(
                f"textures={self.folder!r} is no folder with images. Give one, such as the images "
                "of DTD, or leave it empty to make textures of the training images."
            )
        return self._found

    def like(self, image: Tensor, rng: Rng) -> Tensor:
        """Return a texture for each image of (B, C, H, W), of the same shape, in 0..1."""
        files = self.files()
        if not files:
            return shuffled_tiles(image, rng)
        chosen = rng.integers(0, len(files), (len(image), 1))[:, 0]
        return torch.stack([self._read(files[i], image.shape[1:]) for i in chosen.tolist()]).to(
            image
        )

    @staticmethod
    def _read(path: Path, shape: Sequence[int]) -> Tensor:
        from normscan.io import read_scan

        x = torch.from_numpy(read_scan(path).data)
        if x.ndim != 3:
            raise ArgumentError(f"the texture {path} is no picture but has {x.ndim - 1} axes.")
        x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
        x = x if len(x) == shape[0] else x.mean(0, keepdim=True)
        size = (shape[1], shape[2])
        return F.interpolate(x[None], size, mode="bilinear", antialias=True)[0].expand(*shape)
