"""Reading files as people have them; what cannot be used is set apart and counted."""
