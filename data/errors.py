"""Errors of data that people must repair."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used. The message names the file, the row, the key and what to do."""


class BadRow(Exception):
    """Reason why a row is refused. The reader adds the place."""
