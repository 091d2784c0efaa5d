"""synthetic: see the modules."""
