"""distributed: see the modules."""
