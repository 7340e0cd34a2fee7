"""Evaluation around a training run: before, during, after."""
