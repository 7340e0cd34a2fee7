"""Errors of data that people must repair."""

from __future__ import annotations

from collections.abc import Sequence

MAX_ERRORS = 20  # that an error or a manifest lists
MAX_PLACES = 3  # of a reason, beside its first


class DataError(ValueError):
    """Data that cannot be used. The message names the file, the row, the key and what to do."""


def refuse(errors: Sequence[str], outcome: str = "", of: str = "rows") -> None:
    """Raise DataError with ``errors``, "place: reason" each, if there are any. A reason is said once, with its first
    places and how many more there are; the first 20 reasons are listed."""
    places: dict[str, list[str]] = {}
    for error in errors:
        place, _, reason = error.partition(": ")
        places.setdefault(reason, []).append(place)
    lines = []
    for reason, (first, *again) in places.items():
        others = f" and {len(again) - MAX_PLACES} more" if again[MAX_PLACES:] else ""
        lines.append(f"{first}: {reason}" + (f" (also {', '.join(again[:MAX_PLACES])}{others})" if again else ""))
    if lines:
        more = f"\n... and {len(lines) - MAX_ERRORS} other reasons" if len(lines) > MAX_ERRORS else ""
        head = f"{len(errors)} bad {of}{outcome}:\n" if outcome or len(errors) > 1 else ""
        raise DataError(head + "\n".join(lines[:MAX_ERRORS]) + more)


class BadRow(Exception):
    """Reason why a row is refused. The reader adds the place."""
