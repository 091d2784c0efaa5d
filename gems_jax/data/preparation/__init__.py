"""preparation: see the modules."""
