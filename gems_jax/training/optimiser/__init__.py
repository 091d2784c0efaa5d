"""The optimiser of a run: transform, learning rates, clipping, rounding."""
