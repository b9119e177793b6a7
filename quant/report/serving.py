"""The section on the servers: on how many NPUs each computes the export rightly, and what breaks its rules."""

from ..servers.rules import Finding
from .decision import effects
from .facts import Facts
from .loading import Loading
from .markup import Markup, el
from .parts import section, table


def servers(facts: Facts) -> Markup:
    """By the rules of `check`, read from the servers' loaders."""
    sizes = list(facts.servers[0].sizes)
    rows = [[el("span", loading.server, el("small", loading.version)), *_row(loading)] for loading in facts.servers]
    head = ["Server", "Rules", *(f"{size} NPU{'s' if size > 1 else ''}" for size in sizes)]
    text = (
        "By the servers' own rules, on Atlas 800 A2 and A3. They were read from the loaders of these versions and tried"
        " with the kernels emulated: the first start on a card is still to be made."
    )
    notes = [note for loading in facts.servers for note in _notes(loading)]
    return section(
        "servers",
        "Servers",
        el("p", text),
        table(head, rows, class_="fitted servers"),
        el("ul", [el("li", note) for note in notes], class_="reasons") if notes else None,
    )


def _row(loading: Loading) -> list:
    if loading.refuses:
        return [mark("bad", "no loader"), *("" for _ in loading.sizes)]
    count = len(loading.errors), sum(finding.level == "warning" for finding in loading.findings)
    said = [
        f"{number} {what}{'s' if number > 1 else ''}" for number, what in zip(count, ("error", "warning")) if number
    ]
    rules = mark("bad" if loading.errors else "good", ", ".join(said) or "all kept")
    return [rules, *(_size(loading, size) for size in loading.sizes)]


def _size(loading: Loading, size: int) -> Markup:
    if loading.errors:
        return mark("bad", "no")
    if not loading.sizes[size]:
        return mark("good", "right")
    return mark("bad", "silently wrong" if any("without an error" in text for text in effects(loading, size)) else "no")


def _notes(loading: Loading) -> list:
    if loading.refuses:
        return [[el("strong", loading.server), f": {loading.refuses}"]]
    told = [finding for finding in loading.findings if finding.level != "taste"]
    by_size = [finding for found in loading.sizes.values() for finding in found]
    first: dict[tuple[str, ...], Finding] = {}  # the smallest number of NPUs that something is said of
    for finding in by_size:
        first.setdefault(tuple(finding.effects.values()), finding)
    told += first.values()
    return [
        [
            el("strong", loading.server),
            f", {finding.rule or finding.where}: {finding.what}: {'; '.join(finding.effects.values()).rstrip('.')}."
            f" To mend it: {finding.fix}.",
        ]
        for finding in told
    ]


def mark(state: str, text: str) -> Markup:
    """A word in the colour of its state."""
    return el("span", text, class_=f"mark-{state}")
