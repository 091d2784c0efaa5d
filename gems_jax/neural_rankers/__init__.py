"""Rankers that are trained or read by a model, and that a language model is measured beside."""
