"""Which of the problems that are drawn are held out: a hash of the content decides, so no stage can see one."""

from __future__ import annotations

import zlib
from typing import Literal

Split = Literal["train", "select", "test"]
SPLITS: tuple[Split, ...] = ("train", "select", "test")


def split_of(text: str) -> Split:
    """A tenth of all contents is test, a tenth select, by crc32."""
    match zlib.crc32(text.encode()) % 10:
        case 0:
            return "test"
        case 1:
            return "select"
        case _:
            return "train"
