"""Tables as Markdown, LaTeX or HTML. No torch."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Format = Literal["md", "tex", "html"]

MARKDOWN = {"\\": "\\\\", "|": "\\|", "*": "\\*", "<": "&lt;", "\n": " "}
LATEX = {
    "\\": "\\textbackslash{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "[": "{[}",  # at the start of a row it would be an argument of the line break before
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "±": "$\\pm$",
    "†": "$\\dagger$",
    "‡": "$\\ddagger$",
}


@dataclass(frozen=True, slots=True)
class TableCell:
    """Cell of a table. ``marks`` follow the text: † and ‡ raised, [1] on the line."""

    text: str
    bold: bool = False
    italic: bool = False
    marks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Table with ``notes`` below it, one paragraph each. Without ``head`` there is nothing but notes."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | TableCell]]
    notes: Sequence[str] = ()
    title: str = ""


def render(tables: Sequence[Table], format: Format) -> str:
    """All tables, one below the other, in one format."""
    maker = {"md": _markdown, "tex": _latex, "html": _html}[format]
    return "\n".join(maker(table) for table in tables)


def _markdown(table: Table) -> str:
    paragraphs = [f"**{_markdown_cell(table.title)}**"] if table.title else []
    if table.head:
        lines = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in [table.head, *table.rows]]
        lines.insert(1, "|" + "---|" * len(table.head))
        paragraphs.append("\n".join(lines))
    return "\n\n".join([*paragraphs, *(_escaped(note, MARKDOWN) for note in table.notes)]) + "\n"


def _markdown_cell(cell: str | TableCell) -> str:
    cell = TableCell(cell) if isinstance(cell, str) else cell
    text = _escaped(cell.text, MARKDOWN)
    text = f"**{text}**" if cell.bold else f"*{text}*" if cell.italic else text
    return " ".join([text + "".join(_raised(cell)), *_plain(cell)])


def _latex(table: Table) -> str:
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering"]
    if table.title:
        lines.append(f"\\caption{{{_escaped(table.title, LATEX)}}}")
    if table.head:
        lines += [f"\\begin{{tabular}}{{l{'r' * (len(table.head) - 1)}}}", "\\toprule"]
        lines += [_latex_row(table.head), "\\midrule"]
        lines += [_latex_row(row) for row in table.rows] + ["\\bottomrule", "\\end{tabular}"]
    if table.notes:
        notes = "\\par\n".join(_escaped(note, LATEX) for note in table.notes)
        lines += ["\\par\\medskip", f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize\n{notes}\n\\end{{minipage}}"]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def _latex_row(row: Sequence[str | TableCell]) -> str:
    return " & ".join(map(_latex_cell, row)) + " \\\\"


def _latex_cell(cell: str | TableCell) -> str:
    cell = TableCell(cell) if isinstance(cell, str) else cell
    text = _escaped(cell.text, LATEX)
    text = f"\\textbf{{{text}}}" if cell.bold else f"\\emph{{{text}}}" if cell.italic else text
    raised = "".join(f"\\textsuperscript{{{_escaped(mark, LATEX)}}}" for mark in _raised(cell))
    return " ".join([text + raised, *(_escaped(mark, LATEX) for mark in _plain(cell))])


def _html(table: Table) -> str:
    title = f"<caption>{html.escape(table.title)}</caption>" if table.title else ""
    head = "".join(f"<th>{_html_cell(cell)}</th>" for cell in table.head)
    rows = ["".join(f"<td>{_html_cell(cell)}</td>" for cell in row) for row in table.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in [head, *rows])
    grid = f"<table>{title}\n{body}\n</table>\n" if table.head else ""
    return grid + "".join(f"<p>{html.escape(note)}</p>\n" for note in table.notes)


def _html_cell(cell: str | TableCell) -> str:
    cell = TableCell(cell) if isinstance(cell, str) else cell
    text = html.escape(cell.text)
    text = f"<strong>{text}</strong>" if cell.bold else f"<em>{text}</em>" if cell.italic else text
    return " ".join([text + "".join(f"<sup>{mark}</sup>" for mark in _raised(cell)), *map(html.escape, _plain(cell))])


def _escaped(text: str, how: dict[str, str]) -> str:
    """Text with each character escaped once, so that the output of an escape is not escaped again."""
    return re.sub("[" + re.escape("".join(how)) + "]", lambda match: how[match[0]], text)


def _raised(cell: TableCell) -> list[str]:
    return [mark for mark in cell.marks if not mark.startswith("[")]


def _plain(cell: TableCell) -> list[str]:
    return [mark for mark in cell.marks if mark.startswith("[")]
