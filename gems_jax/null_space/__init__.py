"""null_space: see the modules."""
