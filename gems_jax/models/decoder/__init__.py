"""decoder: see the modules."""
