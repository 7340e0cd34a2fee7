"""Comparisons by people: pairs, blind votes, their table."""
