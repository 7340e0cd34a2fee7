"""Words that do not belong into the repository: notes to self, stubs, guards that hide errors, riddles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import code, files, nodes, text

# In two halves, so that this file does not find itself.
NOTES = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
MACHINE = re.compile(r"(?<![\w./$}~-])/(?:wo" + r"rk|ro" + r"ot|tm" + r"p|ho" + r"me)/")
UNFORMATTED = re.compile(r"# fmt: *(?:sk" + r"ip|o" + r"ff)")
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ".json", ".jsonl", "")
OPENERS = ("Of", "That", "As", "From", "What")  # a text that begins so cannot be read without the name above it
# Names that nobody would search for, each replaced by a term of the field.
NAMES = {"room", "row_seed", "remember_little", "settled", "Kit", "Reader", "Sight", "asking", "Ask", "Wish", "Mark"}
NAMES |= {"Careless", "make_judge", "World", "Alone", "Micro", "Videos", "Prompts"}
FUNCTIONS = {"own", "over", "share"}  # fine as a variable or a field, meaningless as a function
METHODS = {"but"}
SHARED_CLASS_NAMES = {
    "Measured": "a choice of `dispatch` in dsv/config.py, whose name is in configs, and a metric in harness/metrics.py",
}


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


def test_what_is_printed_is_no_markup():
    """A console of rich takes `[a, b]` in a problem for markup, and stops at `[/INST]`: there is one that does not."""
    made = [
        f"{path}:{node.lineno}"
        for path in code()
        for node in nodes(path, ast.Call)
        if ast.unparse(node.func) in ("Console", "rich.print") and path.name != "terminal.py"
    ]
    assert made == []


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


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the docstrings of a module, its classes and its functions."""
    for node in nodes(path, ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
        if text := ast.get_docstring(node):
            yield node.body[0].lineno, text


def help_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every constant string in an argument ``help=`` and in a variable HELP."""
    values = [n.value for n in nodes(path, ast.keyword) if n.arg == "help"]
    values += [n.value for n in nodes(path, ast.Assign) if "HELP" in map(ast.unparse, n.targets)]
    for value in values:
        starts = value.values[:1] if isinstance(value, ast.JoinedStr) else [value]
        if isinstance(value, ast.Dict):
            starts = value.values
        for start in starts:
            if isinstance(start, ast.Constant) and isinstance(start.value, str):
                yield start.lineno, start.value


def test_texts_stand_without_the_name_above_them():
    riddles = [
        f"{path}:{line}: {said.splitlines()[0][:100]}"
        for path in code()
        for line, said in (*docstrings(path), *help_texts(path))
        if re.match(rf"(?:{'|'.join(OPENERS)})\b", said.strip().capitalize())
    ]
    assert riddles == []


def test_the_formatter_lays_out_every_line():
    skipped = [
        f"{path}:{number}"
        for path in code()
        for number, line in enumerate(text(path).splitlines(), 1)
        if UNFORMATTED.search(line)
    ]
    assert skipped == []


def test_no_multiplied_lambda():
    """Two arguments are written twice, or have one name."""
    multiplied = [
        f"{path}:{n.lineno}: {ast.unparse(n)}"
        for path in code()
        for n in nodes(path, ast.BinOp)
        if isinstance(n.op, ast.Mult)
        and any(isinstance(side, ast.List | ast.Tuple) and "lambda" in ast.unparse(side) for side in (n.left, n.right))
    ]
    assert multiplied == []


def public_uses(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, name, kind) of names that a file defines for others, imports, calls or takes as attributes. Kind is
    function, method or name."""
    methods = {id(f) for c in nodes(path, ast.ClassDef) for f in c.body}
    for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
        yield node.lineno, node.name, "method" if id(node) in methods else "function"
    for node in nodes(path, ast.ClassDef):
        yield node.lineno, node.name, "name"
    for scope in nodes(path, ast.Module, ast.ClassDef):
        targets = [t for node in scope.body if isinstance(node, ast.Assign) for t in node.targets]
        targets += [node.target for node in scope.body if isinstance(node, ast.AnnAssign)]
        yield from ((target.lineno, target.id, "name") for target in targets if isinstance(target, ast.Name))
    for node in nodes(path, ast.ImportFrom):
        yield from ((node.lineno, alias.name, "function") for alias in node.names)
    for node in nodes(path, ast.Attribute):
        yield node.lineno, node.attr, "name"
    for node in nodes(path, ast.Call):
        if isinstance(node.func, ast.Attribute):
            yield node.lineno, node.func.attr, "method"
        elif isinstance(node.func, ast.Name):
            yield node.lineno, node.func.id, "function"


def test_public_names_are_terms_of_the_field():
    forbidden = {"name": NAMES, "function": NAMES | FUNCTIONS, "method": NAMES | METHODS}
    odd = {
        f"{path}:{line}: {name}" for path in code() for line, name, kind in public_uses(path) if name in forbidden[kind]
    }
    assert sorted(odd) == []


def test_a_class_name_has_one_meaning():
    places: dict[str, list[str]] = {}
    for path in code():
        if path.parts[:2] == ("src", "stepstack"):
            for node in nodes(path, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{path}:{node.lineno}")
    shared = {name: where for name, where in places.items() if len(where) > 1 and name not in SHARED_CLASS_NAMES}
    assert shared == {}
    unshared = [name for name in SHARED_CLASS_NAMES if len(places.get(name, ())) < 2]
    assert unshared == [], "remove these exceptions: the names are not shared any more"


def letters(table: str) -> set[str]:
    """Shape letters of a table of CONTRIBUTING.md, which begins after the sentence ``table``."""
    rows = text(Path("CONTRIBUTING.md")).split(table)[1].lstrip().split("\n\n")[0].splitlines()[2:]
    return {
        letter for row in rows for cell in row.strip("|").split("|")[::2] for letter in cell.replace(",", " ").split()
    }


def test_shape_letters_are_those_of_the_table():
    """A tensor's name ends in letters of CONTRIBUTING.md's table; the planner of pods has one of its own."""
    general, pods = letters("refuses other letters."), letters("letters of its own:")
    assert {"B", "T", "Y", "X"} <= general
    assert {"N", "W"} <= pods
    strange = set()
    for path in code():
        known = pods if "pods" in path.parts or path.name == "pods.py" else general
        words = [n.id for n in nodes(path, ast.Name)] + [n.arg for n in nodes(path, ast.arg)]
        words += [n.attr for n in nodes(path, ast.Attribute)] + [n.arg for n in nodes(path, ast.keyword) if n.arg]
        for name in words:
            shape = re.fullmatch(r"[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)", name)
            if shape and not set(re.sub("[0-9]", "", shape[1])) <= known:
                strange.add(f"{path}: {name}")
    assert sorted(strange) == []
