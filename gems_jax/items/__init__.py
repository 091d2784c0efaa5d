"""items: see the modules."""
