"""Transformations of matrices: Muon and the polar factor."""
