"""Settings and losses of supervised and preference tuning."""
