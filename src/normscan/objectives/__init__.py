"""Losses, named as in the literature."""
