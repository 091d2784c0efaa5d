"""What a run is told: options, the ranges of their values, configuration files."""
