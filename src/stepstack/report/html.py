"""Self-contained HTML pages: a run's tables, curves and samples, or a page with a script. No torch, no network."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.report import jsonl

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; border-bottom: 1px solid #eee; text-align: left;
vertical-align: top; } td { font-variant-numeric: tabular-nums; white-space: pre-wrap; overflow-wrap: anywhere; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(23rem, 1fr)); gap: 1rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; }
.pictures img { width: 100%; image-rendering: pixelated; outline: 1px solid #ddd; }
figcaption { font-size: .85rem; white-space: pre-wrap; }
.grid.wide { grid-template-columns: repeat(auto-fill, minmax(32rem, 1fr)); }
.side { display: flex; gap: 1rem; margin: 1rem 0; border-top: 1px solid #ddd; } .side div { flex: 1; }
.side p { margin: .3rem 0; white-space: pre-wrap; } .side img { image-rendering: pixelated; border: 4px solid #fff; }
audio { display: block; width: 17rem; height: 2.2rem; } mark { background: #fbb; }
.spectrogram { display: block; width: 17rem; height: 6rem; margin: .3rem 0; image-rendering: auto; }
.grid img, .page img { width: 100%; } pre { background: #f6f6f6; padding: 1rem; overflow: auto; }
"""


@dataclass(frozen=True, slots=True)
class FramedPicture:
    """A picture (PNG) between lines of text, and the CSS colour of its frame; "" for none."""

    png: bytes
    frame: str = ""


Marked = Sequence[tuple[str, bool]]  # words, each with whether it is wrong


@dataclass(frozen=True, slots=True)
class Sound:
    """A WAV with its player, the picture of its spectrogram (PNG), and the words that were heard in it."""

    wav: bytes
    png: bytes = b""
    words: Marked = ()


Column = tuple[str, Sequence["str | FramedPicture"]]  # heading, lines and pictures below it


class Report:
    """HTML page to which parts are added in reading order. ``write`` writes it."""

    def __init__(self, title: str):
        self.title = title
        self.parts: list[str] = []

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>" for row in rows)
        self.parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{cells}</tr>{body}</table>")

    def pictures(self, title: str, items: Sequence[tuple[bytes, str]], width: int = 224) -> None:
        """Add a grid of (PNG, caption), each ``width`` pixels wide."""
        cells = "".join(
            f'<figure style="width: {width}px"><img alt="" src="data:image/png;base64,'
            f'{base64.b64encode(png).decode()}"><figcaption>{html.escape(caption)}</figcaption></figure>'
            for png, caption in items
        )
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="pictures">{cells}</div>')

    def side_by_side(self, title: str, rows: Sequence[Sequence[Column]], width: int = 84) -> None:
        """Add rows of columns that hold lines and pictures, each picture ``width`` pixels wide."""

        def shown(item: str | FramedPicture) -> str:
            if isinstance(item, str):
                return f"<p>{html.escape(item)}</p>"
            style = f"width: {width}px" + (f"; border-color: {item.frame}" if item.frame else "")
            return f'<img alt="" style="{style}" src="data:image/png;base64,{base64.b64encode(item.png).decode()}">'

        body = ""
        for row in rows:
            columns = (f"<b>{html.escape(head)}</b>" + "".join(map(shown, items)) for head, items in row)
            body += '<div class="side">' + "".join(f"<div>{column}</div>" for column in columns) + "</div>"
        self.parts.append(f"<h2>{html.escape(title)}</h2>{body}")

    def sounds(self, title: str, head: Sequence[str], rows: Sequence[Sequence[Sound | str]]) -> None:
        """Add a table of texts and sounds, the wrong words of which are marked. A sound without a WAV has words
        alone."""
        cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
        body = "".join("<tr>" + "".join(f"<td>{_sound_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        self.parts.append(f"<h2>{html.escape(title)}</h2><table><tr>{cells}</tr>{body}</table>")

    def plots(self, title: str, svgs: Mapping[str, bytes]) -> None:
        """Add a grid of finished SVG pictures by name."""
        cells = "".join(f'<img alt="{html.escape(name)}" src="{_embedded(svg)}">' for name, svg in svgs.items())
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="grid wide">{cells}</div>')

    def curves(self, title: str, rows: Sequence[Mapping[str, float]], groups: Mapping[str, Sequence[str]]) -> None:
        """Add one small plot a group, with the metrics that the rows have. A group without any is left out."""
        plots = []
        for name, metrics in groups.items():
            series = {m: _series(rows, m) for m in metrics}
            series = {m: points for m, points in series.items() if points[0]}
            if series:
                plots.append(f'<img alt="{html.escape(name)}" src="{_plot(name, series)}">')
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="grid">{"".join(plots)}</div>')

    def stack(self, title: str, rows: Sequence[Mapping[str, float]], prefix: str) -> None:
        """Add stacked areas of all metrics under ``prefix`` except the total."""
        names = sorted({key for row in rows for key in row if key.startswith(prefix)} - {f"{prefix}step"})
        rows = [row for row in rows if f"{prefix}step" in row and row["step"] > 0]
        if rows and names:
            layers = {name.removeprefix(prefix): [row.get(name, 0.0) for row in rows] for name in names}
            image = _stack_plot([row["step"] for row in rows], layers)
            self.parts.append(f'<h2>{html.escape(title)}</h2><div class="grid"><img alt="" src="{image}"></div>')

    def heading(self, title: str) -> None:
        self.parts.append(f"<h1>{html.escape(title)}</h1>")

    def figures(self, title: str, items: Sequence[tuple[str, Any]], wide: bool = False) -> None:
        """Add (alternative text, matplotlib figure) as SVG: a grid, or each as wide as the page."""
        images = "".join(f'<img alt="{html.escape(alt)}" src="{_svg(figure)}">' for alt, figure in items)
        kind = "page" if wide else "grid"
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="{kind}">{images}</div>')

    def heatmaps(self, title: str, maps: Mapping[str, Sequence[Sequence[float]]], row: str, column: str) -> None:
        """Add one picture for each matrix of numbers between 0 and 1; ``row`` and ``column`` name its axes."""
        images = [
            f'<img alt="{html.escape(name)}" src="{_heatmap(name, map, row, column)}">' for name, map in maps.items()
        ]
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="grid">{"".join(images)}</div>')

    def link(self, title: str, href: str) -> None:
        """Add a link to another page, by a path from this one."""
        self.parts.append(f'<p><a href="{html.escape(href)}">{html.escape(title)}</a></p>')

    def details(self, title: str, value: Any) -> None:
        text = html.escape(json.dumps(value, indent=2))
        self.parts.append(f"<h2>{html.escape(title)}</h2><details><summary>show</summary><pre>{text}</pre></details>")

    def write(self, path: Path) -> Path:
        title = html.escape(self.title)
        jsonl.write_text_atomic(
            path,
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
            f"<h1>{title}</h1>{''.join(self.parts)}</html>\n",
        )
        return path


def _sound_cell(cell: Sound | str) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    wav, png = (base64.b64encode(content).decode() for content in (cell.wav, cell.png))
    player = f'<audio controls preload="none" src="data:audio/wav;base64,{wav}"></audio>' if wav else ""
    picture = f'<img class="spectrogram" alt="" src="data:image/png;base64,{png}">' if png else ""
    words = " ".join(f"<mark>{html.escape(word)}</mark>" if bad else html.escape(word) for word, bad in cell.words)
    return f"{player}{picture}<div>{words}</div>"


def script_page(title: str, script: Path, body: str, policy: str = "") -> str:
    """HTML page of markup in which only its own script may run, whatever else is in it.

    The style sheet is the file beside ``script`` with its name. ``policy``: further permissions in the
    Content-Security-Policy.
    """
    code, style = (path.read_text(encoding="utf-8") for path in (script, script.with_suffix(".css")))
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = f"default-src 'none'; {policy}style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{style}</style>{body}<script>{code}</script></html>\n"
    )


def _series(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[metric]) for row in rows if metric in row and math.isfinite(row[metric])]
    return [p[0] for p in points], [p[1] for p in points]


def _plot(title: str, series: Mapping[str, tuple[list[float], list[float]]]) -> str:
    figure, axes = _figure()
    for name, (steps, values) in series.items():
        axes.plot(steps, values, label=name, linewidth=1.4, marker="o" if len(steps) < 30 else None, markersize=3)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=7, frameon=False)
    return _svg(figure)


def _stack_plot(steps: list[float], layers: Mapping[str, list[float]]) -> str:
    figure, axes = _figure()
    axes.stackplot(steps, list(layers.values()), labels=list(layers))
    axes.set_title("seconds per step", fontsize=10)
    axes.legend(fontsize=7, frameon=False, loc="upper left")
    return _svg(figure)


def _heatmap(title: str, values: Sequence[Sequence[float]], row: str, column: str) -> str:
    figure, axes = _figure()
    image = axes.imshow(values, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image)
    axes.grid(visible=False)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(column, fontsize=8)
    axes.set_ylabel(row, fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _svg(figure)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # heavy: only where a page is written

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _embedded(buffer.getvalue())


def _embedded(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
