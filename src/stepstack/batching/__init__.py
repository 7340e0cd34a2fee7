"""Rows to micro-batches; RL, SFT and preference training use the same."""
