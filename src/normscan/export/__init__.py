"""A fitted detector in forms that others run: a graph for onnxruntime, a bundle for MONAI, a hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.export.bundle import write_bundle as write_bundle
    from normscan.export.hub import pull as pull
    from normscan.export.hub import push as push
    from normscan.export.onnx import write_onnx as write_onnx

__all__ = ["pull", "push", "write_bundle", "write_onnx"]

__getattr__ = lazily(
    __name__, {"pull": "hub", "push": "hub", "write_bundle": "bundle", "write_onnx": "onnx"}
)
