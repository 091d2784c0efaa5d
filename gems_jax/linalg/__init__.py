"""linalg: see the modules."""
