"""The objective: value and gradient, per example or by micro-batches, and the cached evaluation."""
