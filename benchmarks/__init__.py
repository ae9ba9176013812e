"""Comparisons with eqopt's peers, side by side in one process."""
