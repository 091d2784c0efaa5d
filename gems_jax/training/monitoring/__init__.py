"""monitoring: see the modules."""
