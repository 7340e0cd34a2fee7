"""Preparation of data: sources are checked, then written into folders that are complete or absent."""
