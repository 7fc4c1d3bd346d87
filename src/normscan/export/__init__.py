"""A fitted detector in forms that others run: a graph for onnxruntime, a bundle for MONAI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.export.bundle import write_bundle as write_bundle
    from normscan.export.onnx import write_onnx as write_onnx

__all__ = ["write_bundle", "write_onnx"]

__getattr__ = lazily(__name__, {"write_bundle": "bundle", "write_onnx": "onnx"})
