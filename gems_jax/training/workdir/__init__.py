"""workdir: see the modules."""
