"""What does not belong into the repository: notes to self, stubs, guards that hide errors, paths of one machine."""

from __future__ import annotations

import ast
import re

from tests.house.tree import code, files, nodes, text

# In two halves, so that this file does not find itself.
NOTES = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
MACHINE = re.compile(r"(?<![\w./$}~-])/(?:wo" + r"rk|ro" + r"ot|tm" + r"p|ho" + r"me)/")
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ".json", ".jsonl", "")


def found(pattern: re.Pattern) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:120]}"
        for path in files(*TEXT)
        for number, line in enumerate(text(path).splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_notes_to_self():
    assert found(NOTES) == []


def test_no_paths_of_one_machine():
    assert found(MACHINE) == []


def test_no_stubs():
    """A function of only `...` or `pass` declares what nobody wrote; protocols and overloads may. A method that rightly
    does nothing says so in a docstring, which is body enough."""
    stubs = []
    for path in code():
        protocols = [c for c in nodes(path, ast.ClassDef) if any("Protocol" in ast.unparse(b) for b in c.bases)]
        declared = {id(f) for c in protocols for f in c.body}
        for f in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
            empty = ast.unparse(f.body[-1]) in ("...", "pass") and len(f.body) <= 2
            overload = any(ast.unparse(d).endswith("overload") for d in f.decorator_list)
            if empty and not overload and id(f) not in declared:
                stubs.append(f"{path}:{f.lineno} {f.name}")
        stubs += [f"{path}: NotImplementedError" for n in nodes(path, ast.Name) if n.id == "NotImplementedError"]
    assert stubs == []


def test_no_attribute_guards():
    """hasattr, and getattr with a default, hide a misspelt or missing attribute. Where another library's object truly
    may lack it, getattr with a comment on its line may ask."""
    guards = []
    for path in code():
        lines = text(path).splitlines()
        for call in nodes(path, ast.Call):
            name, count = ast.unparse(call.func), len(call.args)
            if name == "hasattr" or (name == "getattr" and count == 3 and "#" not in lines[call.lineno - 1]):
                guards.append(f"{path}:{call.lineno}: {ast.unparse(call)}")
    assert guards == []


def test_a_blanket_except_says_why():
    blanket = []
    for path in code():
        lines = text(path).splitlines()
        for handler in nodes(path, ast.ExceptHandler):
            kind = "" if handler.type is None else ast.unparse(handler.type)
            if kind in ("", "Exception", "BaseException") and "#" not in lines[handler.lineno - 1]:
                blanket.append(f"{path}:{handler.lineno}: except {kind}")
    assert blanket == []


def test_the_environment_is_no_configuration():
    """A run depends on its config alone. The environment may be handed on whole, and set for another program."""
    readers = []
    for path in code():
        reads = [n for n in nodes(path, ast.Subscript) if isinstance(n.ctx, ast.Load)]
        reads += [n.func for n in nodes(path, ast.Call)]
        reads += [n.comparators[-1] for n in nodes(path, ast.Compare)]
        shown = [(n.lineno, ast.unparse(n)) for n in reads]
        readers += [f"{path}:{at}: {s}" for at, s in shown if re.match(r"os\.(getenv$|environ($|\.get|\[))", s)]
    assert readers == []
