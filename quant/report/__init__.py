"""python -m quant report: one HTML file that shows what was quantized, how, how well, and on what; it needs no network
and no other file.

facts.py     what is on disk -> Facts; loading.py: the servers' rules, markup.py: HTML that what it quotes cannot break
decision.py  Facts -> the first line: deploy, do not deploy, not proven; and why
overview.py, proof.py, peers.py, answers.py, serving.py, weakest.py, costs.py, blocks.py, coverage.py
             Facts -> sections; parts.py: what they are put together from
plots.py     inline SVG
style.css, script.js                                 put into the page
"""

from pathlib import Path

from . import answers, blocks, costs, coverage, overview, peers, proof, serving, weakest
from .decision import decide
from .facts import Facts, gather
from .markup import Markup, el

PARTS = (
    ("Summary", overview.summary),
    ("Verification", proof.verification),
    ("Accuracy", proof.accuracy),
    ("Beside others", peers.peers),
    ("Answers", answers.answers),
    ("Servers", serving.servers),
    ("Weakest linears", weakest.weakest),
    ("Costs", costs.costs),
    ("Error per block", blocks.errors),
    ("Coverage", coverage.coverage),
    ("Activation ranges", blocks.ranges),
    ("Clipped activations", blocks.clipping),
    ("Every linear's decision", blocks.layers),
    ("Calibration images", overview.images),
    ("Timings", overview.timings),
)


def page(facts: Facts) -> str:
    """The whole HTML document."""
    here = Path(__file__).parent
    style, script = (Markup((here / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    parts = [part(facts) for _, part in PARTS]
    names = [str(part).partition('id="')[2].partition('"')[0] for part in parts]
    title = f"{facts.family.name}, W8A8"
    # Nothing may be fetched, whatever slips in: what the page needs is in it.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("title", f"{title}: {facts.export.dir.name}"),
        el("style", style),
    )
    top = el(
        "header",
        el("h1", title),
        el("p", el("code", facts.export.dir.resolve())),
        overview.verdict(decide(facts)),
        el("nav", [el("a", label, href=f"#{name}") for (label, _), name in zip(PARTS, names)]),
    )
    body = el("body", top, el("main", parts), el("footer", "Hover over a plot for its numbers."), el("script", script))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


__all__ = ["Facts", "decide", "gather", "page"]
