"""The configuration of a run: options, the ranges of their values, configuration files."""
