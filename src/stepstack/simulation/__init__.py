"""Simulations of plans: time, money, waste. Pure functions, no torch."""
