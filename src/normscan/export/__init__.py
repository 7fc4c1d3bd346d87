"""A fitted detector in forms that others run: a graph for onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

from normscan.lazy import lazily

if TYPE_CHECKING:
    from normscan.export.onnx import write_onnx as write_onnx

__all__ = ["write_onnx"]

__getattr__ = lazily(__name__, {"write_onnx": "onnx"})
