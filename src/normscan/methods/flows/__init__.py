"""Normalising flows and implicit fields."""
