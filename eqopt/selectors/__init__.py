"""Selectors: which leaves of a model something is for."""
