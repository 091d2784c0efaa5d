"""optimiser: see the modules."""
