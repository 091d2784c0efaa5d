"""Tuning a model on all tasks: the loop and its stages."""
