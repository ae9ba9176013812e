"""Arithmetic on one leaf, checks that name a leaf, trees, converters, JAX's private parts."""
