"""A dataset as it is stored."""
