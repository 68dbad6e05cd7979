"""A study at its smallest, to begin one with."""
