"""Decisions about machines: who computes what, and where. Pure functions, no torch."""
