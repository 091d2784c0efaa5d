"""t5: see the modules."""
