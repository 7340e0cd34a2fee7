"""Scores of boxes, points and what is read in pictures."""
