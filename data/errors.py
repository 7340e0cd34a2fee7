"""Errors of data, for people to mend."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used: names the file, the row, the key and what to do."""


class BadRow(Exception):
    """Why a row is refused; the reader adds the place."""
