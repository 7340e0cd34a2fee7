"""Small files, small functions, small configs. Who breaks a budget splits the thing, or argues in docs/decisions.md."""

from __future__ import annotations

import ast

from tests.house.tree import files, nodes, text

FILE, LOOP, RECIPE = 500, 200, 150  # lines
FUNCTION = 60  # lines, from def to the last one
FIELDS = 25  # of one dataclass, inherited ones not counted


def lines(path) -> int:
    return len(text(path).splitlines())


def test_files():
    assert [f"{p}: {lines(p)} lines" for p in files(".py", ".sh", ".md") if lines(p) > FILE] == []


def test_loops():
    loops = [p for p in files(".py") if p.parts[:3] == ("src", "stepstack", "loops")]
    assert [f"{p}: {lines(p)} lines" for p in loops if lines(p) > LOOP] == []


def test_recipes():
    recipes = [p for p in files(".py") if p.parts[0] == "recipes" and p.name == "recipe.py"]
    assert [f"{p}: {lines(p)} lines" for p in recipes if lines(p) > RECIPE] == []


def test_functions():
    long = [
        f"{path}:{f.lineno} {f.name}: {f.end_lineno - f.lineno + 1} lines"
        for path in files(".py")
        for f in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        if f.end_lineno - f.lineno + 1 > FUNCTION
    ]
    assert long == []


def test_fields():
    wide = [
        f"{path}:{c.lineno} {c.name}: {count} fields"
        for path in files(".py")
        for c in nodes(path, ast.ClassDef)
        if any("dataclass" in ast.unparse(d) for d in c.decorator_list)
        and (count := sum(isinstance(item, ast.AnnAssign) for item in c.body)) > FIELDS
    ]
    assert wide == []
