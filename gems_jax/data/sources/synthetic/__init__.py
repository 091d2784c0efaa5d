"""A made-up marketplace, for the demo and for tests."""
