"""T5 1.0, 1.1, Flan, mT5 and UMT5."""
