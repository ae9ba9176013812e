"""Transformations that keep a run in bounds: norms, decay, factors by path."""
