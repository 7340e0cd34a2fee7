"""Splits of drawn problems. A hash of the content decides which are held out, so that no stage of training can see
one."""

from __future__ import annotations

import zlib
from typing import Literal

Split = Literal["train", "select", "test"]
SPLITS: tuple[Split, ...] = ("train", "select", "test")


def split_of(text: str) -> Split:
    """Split of a content by crc32: a tenth of all is test, a tenth select."""
    match zlib.crc32(text.encode()) % 10:
        case 0:
            return "test"
        case 1:
            return "select"
        case _:
            return "train"
