"""Ranking items with a generative model, and measuring rankings."""
