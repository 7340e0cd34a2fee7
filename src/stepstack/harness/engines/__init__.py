"""Engines that answer the questions of an evaluation."""
