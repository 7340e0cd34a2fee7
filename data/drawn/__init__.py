"""Data made on the spot, held out by hash."""
