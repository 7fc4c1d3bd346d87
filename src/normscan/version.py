"""The version of normscan."""

__version__ = "0.1.0"
