"""Quasi-Newton directions and conjugate gradients."""
