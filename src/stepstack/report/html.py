"""Self-contained HTML pages: a run's tables, curves and samples, or a page with a script. No torch, no network."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepstack.report import charts, jsonl
from stepstack.report.charts import Chart, StageRows

SCRIPT = Path(__file__).with_name("page.js")
SMALL = 240  # pixels; of pictures up to this width two stand beside each other on a narrow screen
MEDIA = "img-src data:; media-src data:; "  # all that a page shows is in it


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
        self.sets: list[dict[str, Any]] = []  # axes of charts
        self.charts: list[dict[str, Any]] = []
        self.runs: dict[str, Any] = {}  # those that are compared

    def table(self, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> None:
        """Add a table. ``kind``: "samples" for texts, whose cells stand below each other on a narrow screen."""
        self.parts.append(f"<h2>{html.escape(title)}</h2>{table_of(head, rows, kind)}")

    def pictures(self, title: str, items: Sequence[tuple[bytes, str]], width: int = 224) -> None:
        """Add a grid of (PNG, caption), each ``width`` pixels wide."""
        kind = "small" if width <= SMALL else "large"
        cells = "".join(
            f'<figure class="{kind}" style="width: {width}px"><img alt="" src="data:image/png;base64,'
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
        names = [html.escape(name) for name in head]
        cells = "".join(f"<th>{name}</th>" for name in names)
        body = "".join(
            "<tr>"
            + "".join(f'<td data-head="{name}">{_sound_cell(cell)}</td>' for name, cell in zip(names, row, strict=True))
            + "</tr>"
            for row in rows
        )
        table = f'<div class="wide"><table class="samples"><tr>{cells}</tr>{body}</table></div>'
        self.parts.append(f"<h2>{html.escape(title)}</h2>{table}")

    def plots(self, title: str, svgs: Mapping[str, bytes]) -> None:
        """Add a grid of finished SVG pictures by name."""
        cells = "".join(f'<img alt="{html.escape(name)}" src="{_embedded(svg)}">' for name, svg in svgs.items())
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="drawn">{cells}</div>')

    def curves(self, title: str, stages: Sequence[StageRows], live: bool = False) -> None:
        """Add the metrics of stages on one time line, as the glossary groups them, and below them those that it leaves
        out. ``live``: whether the page is to be read anew while it is open."""
        explained, left = charts.charts(stages)
        if not explained and not left:
            return
        self.parts.append(f"<h2>{html.escape(title)}</h2>{_controls([stage.name for stage in stages], live)}")
        place = self._set({"stages": charts.axes(stages), "overlaid": False})
        self.parts.append(self._grid(place, explained))
        if left:
            self.parts.append(
                f"<details><summary>{len(left)} other metrics</summary>{self._grid(place, left)}</details>"
            )

    def compare(self, title: str, runs: Mapping[str, Sequence[StageRows]], chosen: int) -> None:
        """Add the curves of several runs over each other: of those whose box (``data-choose``, by number) is ticked, at
        first the first ``chosen``. Each run has one stage, or none."""
        stages = [stage for by_run in runs.values() for stage in by_run]
        place = self._set({"stages": charts.axes(stages), "overlaid": True})
        self.runs = {"runs": list(runs), "chosen": list(range(min(chosen, len(runs))))}
        self.parts.append(f"<h2>{html.escape(title)}</h2>{_controls([])}{self._grid(place, charts.compared(runs))}")

    def _set(self, axes: dict[str, Any]) -> int:
        self.sets.append(axes)
        return len(self.sets) - 1

    def _grid(self, place: int, group: Sequence[Chart]) -> str:
        """Grid of charts on the axes number ``place``."""
        cells = []
        for one in group:
            cells.append(_figure_of(one, len(self.charts)))
            self.charts.append({"set": place, "stacked": one.text.stacked, "lines": one.lines})
        return f'<div class="charts">{"".join(cells)}</div>'

    def add(self, markup: str) -> None:
        """Add finished markup, in which every text is escaped."""
        self.parts.append(markup)

    def heading(self, title: str) -> None:
        self.parts.append(f"<h1>{html.escape(title)}</h1>")

    def figures(self, title: str, items: Sequence[tuple[str, Any]], wide: bool = False) -> None:
        """Add (alternative text, matplotlib figure) as SVG: a grid, or each as wide as the page."""
        images = "".join(f'<img alt="{html.escape(alt)}" src="{_svg(figure)}">' for alt, figure in items)
        kind = "page" if wide else "drawn"
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="{kind}">{images}</div>')

    def heatmaps(self, title: str, maps: Mapping[str, Sequence[Sequence[float]]], row: str, column: str) -> None:
        """Add one picture for each matrix of numbers between 0 and 1; ``row`` and ``column`` name its axes."""
        images = [
            f'<img alt="{html.escape(name)}" src="{_heatmap(name, map, row, column)}">' for name, map in maps.items()
        ]
        self.parts.append(f'<h2>{html.escape(title)}</h2><div class="drawn">{"".join(images)}</div>')

    def link(self, title: str, href: str) -> None:
        """Add a link to another page, by a path from this one."""
        self.parts.append(f'<p><a href="{html.escape(href)}">{html.escape(title)}</a></p>')

    def details(self, title: str, value: Any) -> None:
        text = html.escape(json.dumps(value, indent=2))
        self.parts.append(f"<h2>{html.escape(title)}</h2><details><summary>show</summary><pre>{text}</pre></details>")

    def write(self, path: Path) -> Path:
        data = {"sets": self.sets, "charts": self.charts, **self.runs}
        body = f"<h1>{html.escape(self.title)}</h1>{''.join(self.parts)}{json_element(data)}"
        jsonl.write_text_atomic(path, script_page(self.title, SCRIPT, body, MEDIA))
        return path


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """Markup of a table of texts."""
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = ""
    for row in rows:
        named = zip(head, row, strict=True)
        body += "<tr>" + "".join(_cell(name, str(cell)) for name, cell in named) + "</tr>"
    attribute = f' class="{kind}"' if kind else ""
    titles = f"<tr>{cells}</tr>" if any(head) else ""
    return f'<div class="wide"><table{attribute}>{titles}{body}</table></div>'


def _cell(head: str, text: str) -> str:
    return f'<td data-head="{html.escape(head)}">{html.escape(text)}</td>'


def json_element(data: Mapping[str, Any]) -> str:
    """Data for a page's script, in which no tag can end. ASCII only: U+2028 and half surrogates too are escaped."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e")
    return f'<script id="data" type="application/json">{text}</script>'


CONTROLS = (
    '<label>smooth <input type="range" min="0" max="0.98" step="0.02" data-control="smooth"></label>'
    '<label>axis <select data-control="x"><option value="step">steps</option><option value="time">time</option>'
    "</select></label>"
)
MORE_CONTROLS = (
    '<label><input type="checkbox" data-control="log"> log</label>'
    '<button data-control="zoom" hidden>reset zoom</button><span class="dim">drag to zoom, double click to leave</span>'
)


RELOAD = '<label><input type="checkbox" data-control="reload"> reload every 30 s</label>'


def _controls(stages: Sequence[str], live: bool = False) -> str:
    names = "".join(f'<option value="{html.escape(name)}">{html.escape(name)}</option>' for name in stages)
    ranges = '<option value="own">where there is data</option><option value="whole">the whole run</option>'
    choice = f'<label>range <select data-control="range">{ranges}{names}</select></label>' if len(stages) > 1 else ""
    controls = f"{CONTROLS}{choice}{MORE_CONTROLS}{RELOAD if live else ''}"
    return f'<div class="controls">{controls}</div><noscript>The curves need JavaScript.</noscript>'


def _figure_of(chart: Chart, number: int) -> str:
    """Frame of a chart, which the page's script fills."""
    text = chart.text
    title = html.escape(text.title)
    notes = []
    if text.expect:
        notes.append(f"{html.escape(text.expect)} <b>Bad sign:</b> {html.escape(text.bad_sign)}")
    if chart.thinned_to:
        kept = "means" if text.stacked else "the least and the greatest"
        notes.append(f"Of more than {chart.thinned_to} points {kept} of equal stretches are drawn.")
    if chart.not_finite:
        notes.append(f"<b>{chart.not_finite} values that are not finite are left out.</b>")
    unit = f" <small>{html.escape(text.unit)}</small>" if text.unit else ""
    lines = "".join(f"<p>{note}</p>" for note in notes)
    return (
        f'<figure class="chart" data-chart="{number}"><span class="where"></span><h3>{title}{unit}</h3>'
        f'<div class="legend"></div><svg role="img" aria-label="{title}"></svg>{lines}</figure>'
    )


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
