"""transform: see the modules."""
