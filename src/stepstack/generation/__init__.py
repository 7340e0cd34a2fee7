"""Prompt in, response out: engines behind one protocol. Knows no RL."""
