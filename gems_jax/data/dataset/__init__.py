"""dataset: see the modules."""
