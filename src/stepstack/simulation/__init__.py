"""What plans come to: time, money, waste. Pure functions, no torch."""
