"""Experiments on what a score can find, whatever detector stands behind it."""

from normscan.diagnostics.landscape import Landscape as Landscape
from normscan.diagnostics.landscape import average_precision as average_precision
from normscan.diagnostics.landscape import equalized as equalized
from normscan.diagnostics.landscape import residual_landscape as residual_landscape
