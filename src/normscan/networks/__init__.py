"""Dimension-free blocks and networks, and frozen backbones."""
