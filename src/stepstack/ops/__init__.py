"""Operators: the public call, its checks and the choice between reference and kernel."""
