"""A run: its config, its inputs, its directory, its phases one after the other, and a matrix of runs."""
