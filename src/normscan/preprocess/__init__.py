"""From a scan as it was stored to what a method sees, and the way back for the map."""

from normscan.preprocess.pipeline import Prepared, Preprocess

__all__ = ["Prepared", "Preprocess", "load_steps"]


def load_steps() -> None:
    """Import the modules whose functions are the steps."""
    import importlib

    for name in STEP_MODULES:
        importlib.import_module(f"normscan.preprocess.{name}")


STEP_MODULES = (
    "spatial",
    "bias",
    "brain",
    "registration",
    "intensity",
    "checks",
    "ct",
    "fields",
    "colour",
)
