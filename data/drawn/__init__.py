"""Data that are drawn, not stored: chains of sums, text, scenes and moving forms."""
