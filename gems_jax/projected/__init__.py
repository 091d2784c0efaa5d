"""Low-rank gradients straight from the model's program, the whole ones never formed (METHOD.md, section 11)."""
