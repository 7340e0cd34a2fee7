"""Readers of media files, one for each kind."""
