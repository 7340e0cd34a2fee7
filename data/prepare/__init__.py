"""Validate, deduplicate, decontaminate, write with hashes."""
