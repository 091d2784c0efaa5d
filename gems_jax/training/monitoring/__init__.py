"""A run reports itself while it goes on: metrics, progress, profiles."""
