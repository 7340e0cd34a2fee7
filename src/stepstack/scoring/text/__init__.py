"""Similarity and overlap of texts."""
