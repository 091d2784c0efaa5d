"""raw: see the modules."""
