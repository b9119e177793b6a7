"""What a reader of quant/ is told: every public name says what it is, tensors have shapes, and files that are referred
to exist.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "quant").rglob("*.py"))
SHAPE = re.compile(r"\[|\bscalars?\b|\bany shape\b")
FILE = re.compile(r"[\w/]*\w\.py\b")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef, owner: str = "", about: str = "") -> Iterator[tuple[str, Definition, str]]:
    """(dotted name, node, docstring of the class around it) of every public function, class and method."""
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield owner + child.name, child, about
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{owner}{child.name}.", ast.get_docstring(child) or "")


def annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Of what a function takes and gives."""
    given = node.args
    taken = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    return [ast.unparse(note) for note in (*(each.annotation for each in taken), node.returns) if note is not None]


def undocumented(source: str) -> list[str]:
    return [name for name, node, _ in public(ast.parse(source)) if not ast.get_docstring(node)]


def shapeless(source: str) -> list[str]:
    """Public functions that take or give tensors, and say a shape neither themselves nor in their class's docstring."""
    return [
        name
        for name, node, about in public(ast.parse(source))
        if not isinstance(node, ast.ClassDef)
        and any(re.search(r"\bTensor\b", note) for note in annotations(node))
        and not SHAPE.search(f"{about} {ast.get_docstring(node)}")
    ]


def raises(node: ast.AST) -> Iterator[str]:
    """The classes that a function's own body raises; not those of functions inside it, nor an error that it lets on."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition | ast.Lambda):
            continue
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            yield ast.unparse(child.exc.func)
        yield from raises(child)


def silent(source: str) -> list[str]:
    """Public functions that raise an error, and classes whose making does, and whose docstring does not say so."""
    found = []
    for name, node, _ in public(ast.parse(source)):
        body = node
        if isinstance(node, ast.ClassDef):
            body = next((part for part in node.body if getattr(part, "name", None) == "__init__"), ast.Pass())
        if set(raises(body)) - {"NotImplementedError"} and "aise" not in (ast.get_docstring(node) or ""):
            found.append(name)
    return found


def prose(source: str) -> str:
    """All docstrings and comments."""
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n".join([*texts, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def gone(source: str, existing: list[str]) -> list[str]:
    """Python files, by name or path, that the prose refers to and `existing`, paths from the root, has none of."""
    return [
        name for name in FILE.findall(prose(source)) if not any(f"/{path}".endswith(f"/{name}") for path in existing)
    ]


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_public_names_are_documented(file):
    source = file.read_text()
    assert not source.strip() or file.name == "__main__.py" or ast.get_docstring(ast.parse(source))
    assert undocumented(source) == []
    assert shapeless(source) == []
    assert silent(source) == []


def test_files_that_are_referred_to_exist():
    """In quant/, bench/ and examples/; tests also speak of files that they make up."""
    files = [file for folder in ("quant", "bench", "examples", "tests") for file in (ROOT / folder).rglob("*.py")]
    existing = [file.relative_to(ROOT).as_posix() for file in files]
    assert {
        path: names
        for file, path in zip(files, existing)
        if not path.startswith("tests/") and (names := gone(file.read_text(), existing))
    } == {}


def test_what_is_missing_is_found():
    source = '''
class Known:
    """A table."""
    def bare(self): ...
    def rows(self, x: "Tensor | None"):
        """Some."""
    def _own(self): ...
    def __init__(self):
        raise QuantError("no")
def scale(x: Tensor) -> Tensor:
    """[C] -> [C], see AWAY."""  # and here.py, room/here.py, room/AWAY
'''
    source = source.replace("AWAY", "away.py")
    assert undocumented(source) == ["Known.bare"]
    assert shapeless(source) == ["Known.rows"]
    assert silent(source) == ["Known"]
    assert silent(source.replace("A table.", "Raises QuantError.")) == []
    assert gone(source, ["quant/room/here.py"]) == ["away.py", "room/away.py"]
