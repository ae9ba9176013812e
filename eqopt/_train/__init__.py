"""The class `Optimizer`, the loop `fit` over batches, and its history."""
