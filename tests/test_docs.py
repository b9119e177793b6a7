"""What the pages say of the code is there: the picture of the rooms, every name of a file, a function or a test."""

import ast
import re

import pytest
from test_architecture import MODELS, ROOMS, ROOT, imported_rooms, modules

from bench.hub_config import SIZES
from quant.families import family_of
from quant.families.areas import resize

PAGES = sorted(
    file for place in ("", "docs", "examples", "calibImages", "bench", "tests") for file in (ROOT / place).glob("*.md")
)
ARCHITECTURE, README, CHINESE = ROOT / "docs" / "architecture.md", ROOT / "README.md", ROOT / "README.zh.md"
TOP = ("quant", "docs", "tests", "examples", "bench", "calibImages", ".ci")
# A path from the top of the repository, with a place in braces or the like left alone: quant/<model>/...
PATH = re.compile(rf"(?<![\w/.{{<-])(?:{'|'.join(map(re.escape, TOP))})/[\w./-]*(?![\w/.<{{*])")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
# `file.py: name`, `file.py: Class.name`, `file.py::test_name`
NAME = re.compile(r"`([\w/]+\.py)(?::\s+|::)([\w.]+)`")
# Not in the repository: made by a user's commands, or somebody else's.
ELSEWHERE = {"skimage/data/_fetchers.py"}


def ids(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def imports() -> dict[str, set[str]]:
    """Room -> the other rooms that it imports from."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for file, room in modules():
        if room in found:
            found[room] |= {other for other, _ in imported_rooms(file)} - {room}
    return found


def reduced(arrows: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that lead where others lead, too, by way of a room between."""

    def beyond(room: str) -> set[str]:
        return {far for near in arrows[room] for far in arrows[near] | beyond(near)}

    return {room: ends - beyond(room) for room, ends in arrows.items()}


def drawn(text: str) -> dict[str, set[str]]:
    """The arrows of a page's mermaid picture."""
    picture = re.search(r"```mermaid\nflowchart TD\n(.*?)```", text, re.DOTALL)
    found: dict[str, set[str]] = {}
    for line in picture.group(1).splitlines():
        start, ends = re.fullmatch(r" +(\w+) --> (\w+(?: & \w+)*)", line).groups()
        assert start not in found, f"{start} has two lines"
        found[start] = set(ends.split(" & "))
    return found


def rows_of(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line is `head`."""
    lines = text[text.index(head) :].splitlines()[2:]
    table = lines[: next(number for number, line in enumerate([*lines, ""]) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_picture_shows_the_imports_between_rooms():
    expected = {room: ends for room, ends in reduced(imports()).items() if ends}
    assert drawn(ARCHITECTURE.read_text()) == expected


def test_the_table_has_every_room_and_every_import():
    rows = rows_of(ARCHITECTURE.read_text(), "| room | what is in it | imports from |")
    assert [room for room, _, _ in rows] == [f"`{room}/`" for room in ROOMS]
    stated = {room.strip("`/"): ends.split(", ") if ends else [] for room, _, ends in rows}
    found = imports()
    assert stated == {room: [other for other in ROOMS if other in found[room]] for room in ROOMS}


def test_reduction_leaves_out_what_another_way_leads_to():
    arrows = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert reduced(arrows) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set()}


@pytest.mark.parametrize("page", [README, CHINESE], ids=ids([README, CHINESE]))
def test_the_readme_has_a_line_for_every_room(page):
    text = page.read_text()
    named = [
        name for line in text.splitlines() if line.startswith("| `quant/") for name in line.split("|")[1].split(",")
    ]
    folders = [name.strip(" `").removeprefix("quant/").rstrip("/") for name in named]
    assert [name for name in folders if name in ROOMS] == list(ROOMS)
    assert set(folders) == {*ROOMS, *MODELS}


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_every_path_is_there(page):
    text = page.read_text()
    paths = {path.rstrip(".") for path in PATH.findall(text)} - ELSEWHERE
    missing = [path for path in sorted(paths) if not (ROOT / path).exists()]
    missing += [link for link in sorted(set(LINK.findall(text))) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_every_name_is_there(page):
    missing = [f"{file}: {name}" for file, name in NAME.findall(page.read_text()) if not defined(file, name)]
    assert not missing


def defined(file: str, name: str) -> bool:
    """Whether a file, named from the top, from quant/ or from tests/, defines the name: what stands at the top of the
    module, or in a class there.
    """
    path = next((ROOT / place / file for place in ("", "quant", "tests") if (ROOT / place / file).is_file()), None)
    if path is None:
        return False
    scope = ast.parse(path.read_text()).body
    for part in name.split("."):
        found = [node for node in scope if part in names_of(node)]
        if not found:
            return False
        scope = getattr(found[0], "body", [])
    return True


def names_of(node: ast.AST) -> list[str]:
    """What a statement gives names to."""
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [inner.id for target in targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
    return [node.name] if hasattr(node, "name") else []


def test_the_search_for_names_and_paths_finds_what_it_should():
    assert defined("model/paused.py", "Walk.enter") and defined("tests/test_docs.py", "defined")
    assert not defined("model/paused.py", "Walk.leave") and not defined("model/gone.py", "Walk")
    text = (
        "(see `quant/gone.py`) quant/<model>/x tests/gone.md. http://a/docs/b [c](gone.md#d) `a/b.py: C.d` OUT/quant/x"
    )
    assert PATH.findall(text) == ["quant/gone.py", "tests/gone.md."]
    assert LINK.findall(text) == ["gone.md"] and NAME.findall(text) == [("a/b.py", "C.d")]


def test_the_shapes_of_the_walk():
    """Of the photograph by the family's description and the published config.json; of the weight by the same."""
    config = SIZES["qwen2vl-2b"].config
    family = family_of(config, "")
    vision, language = family.towers
    patch, merge = family.processing.patch(config), family.processing.merge(config)
    rows, columns = (side // patch for side in resize(480, 640, patch * merge, *family.processing.limits))
    patches, image = rows * columns, rows * columns // merge**2
    width, hidden, mlp = vision.width(config), language.width(config), language.mlp(config)
    text = ARCHITECTURE.read_text()
    for stated in (
        f"{vision.used(config)} vision and {language.used(config)} language blocks",
        f"T is the number of tokens: {image} for the image",
        f"| {rows * patch} x {columns * patch} |",
        f"{rows} x {columns} patches",
        f"float32 [{patches}, {3 * 2 * patch**2}]",
        f"[[1, {rows}, {columns}]]",
        f"| [{patches}, {width}], the last [{patches}, {vision.mlp(config)}] |",
        f"| [{image}, {hidden}] |",
        f"`down` [1, T, {mlp}]",
        f"[1, P, {family.vocab_size(config)}]",
        f"bfloat16 [{hidden}, {hidden}], with a bias [{hidden}]",
    ):
        assert stated in text, stated
