"""What the page's sections are put together from."""

from collections.abc import Collection, Sequence

from .markup import Markup, el

NO_RUN = "Not recorded: there is no quant_run.json, or the engine of that run measures no blocks."
NO_VERIFY = "python -m quant verify OUT --model_path SRC --json verify.json"
TOWERS = {"vision": "Vision tower", "language": "Language model"}


def section(name: str, title: str, *children) -> Markup:
    """A section of the page; name: what links call it."""
    return el("section", el("h2", title), *children, id=name)


def hint(*children) -> Markup:
    """A line in a lighter colour: what is missing, and what would bring it."""
    return el("p", *children, class_="hint")


def undone(what: str, command: str, flag: str) -> Markup:
    """Instead of a section that a command would fill."""
    return hint(f"{what} ", el("code", command), ", then this report with ", el("code", flag), ".")


def panels(items: Sequence[tuple[str, Markup]]) -> Markup:
    """(title, plot) side by side where there is room; up to two may be larger than many."""
    return el(
        "div",
        [el("figure", el("figcaption", title), plot) for title, plot in items],
        class_="panels" if len(items) > 2 else "panels few",
    )


def legend(*entries: tuple[str, str]) -> Markup:
    """entries: (CSS class of a sample mark, what it means)."""
    return el("p", [el("span", el("i", class_=kind), text) for kind, text in entries], class_="legend")


def table(head: list[str], rows: list[list], numeric: Collection[int] = (), **attributes) -> Markup:
    """numeric: the columns whose cells are numbers, set to the right; class_="sortable" has the page's script sort."""
    cells = lambda row, tag: [el(tag, cell, class_="number" if i in numeric else None) for i, cell in enumerate(row)]
    body = el("tbody", [el("tr", cells(row, "td")) for row in rows])
    return el("div", el("table", el("thead", el("tr", cells(head, "th"))), body, **attributes), class_="wide")


def tile(label: str, value: str, note: str, state: str | None = None) -> Markup:
    """state: good or bad; said in words in `note` too, never by colour alone."""
    return el("div", el("h3", label), el("strong", value), el("span", note), class_=f"tile {state or ''}".strip())


def signed(value: float, form: str) -> str:
    """With its sign, a minus being one; 0 has none."""
    return f"{value:+{form}}".replace("-", "\u2212") if value else f"{value:{form}}"


def percent(share: float, digits: int = 1) -> str:
    """0.932 -> 93.2 %, with a space that does not break."""
    return f"{100 * share:.{digits}f}\u00a0%"
