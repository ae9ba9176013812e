"""Arithmetic of one leaf, checks that name a leaf, trees, converters, what is private in JAX."""
