"""Draw a dozen short videos with captions: a stand-in for a folder of one's own in `stepvideo-tiny-clips`.

python examples/draw_clips.py clips           # clips/00.mp4 ... and clips/captions.jsonl
python examples/draw_clips.py clips count=24
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data.drawn import moving
from data.drawn.moving import Moving
from data.media import frames
from stepstack.report import jsonl

FPS = 10


def main(folder: Path, count: int) -> None:
    """Write ``count`` videos of 12 frames of 64 x 48 pixels: a form on a plain ground, moving as its caption says."""
    data = Moving(size=64, frames=12, train=count, scores=(10.0, 15.0), radius=(7.0, 11.0))
    rows = []
    for number, clip in enumerate(moving.clips(data, "train")):
        name = f"{number:02d}.mp4"
        frames.write_mp4(folder / name, moving.render(clip, data)[:, 8:56], FPS)
        rows.append({"video": name, "caption": clip.prompt})
    jsonl.write_bytes_atomic(folder / "captions.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())
    print(f"{folder}: {count} videos and captions.jsonl")


if __name__ == "__main__":
    options = dict(word.split("=") for word in sys.argv[2:])
    main(Path(sys.argv[1]), int(options.get("count", 12)))
