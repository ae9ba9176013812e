"""Conversions from and to optax."""
