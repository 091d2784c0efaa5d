"""A configuration proposed from a model's folder, the user's data and this machine."""
