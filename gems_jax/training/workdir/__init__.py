"""A run's folder: checkpoints, checksums, locks, what it was tuned on."""
