"""Executors of plans: who computes which part of one sample."""
