"""The sections on what verify and evaluate measured."""

from ..evaluate.scoring import RULES
from ..verify.verdict import CULPRITS
from .facts import Facts
from .markup import Markup, el
from .parts import NO_VERIFY, hint, percent, section, signed, table, tile, undone
from .plots import interval_panel

NO_EVALUATION = "python -m quant evaluate --model_path SRC --quantized OUT --data FILE --json evaluation.json"
CAUSES = {None: "no tensor is damaged, all within the thresholds"} | CULPRITS


def accuracy_tile(facts: Facts) -> Markup | None:
    """The scores in brief; None where nothing was evaluated."""
    if facts.evaluation is None:
        return None
    shares = [_all(side)["right"] / _all(side)["of"] for side in facts.evaluation["sides"]]
    if len(shares) == 1:
        return tile(
            "Accuracy, %", f"{100 * shares[0]:.1f}", f"{facts.evaluation['sides'][0]['name']}, nothing to compare with"
        )
    difference = facts.evaluation["difference"]
    passed = facts.evaluation["passed"]
    verdict = (
        f"{signed(difference['points'], '.2f')} points, {'more than' if difference['exceeded'] else 'within'} the"
        f" {difference['max_drop']:g} allowed"
    )
    return tile("Accuracy, %", f"{100 * shares[0]:.1f} → {100 * shares[1]:.1f}", verdict, "good" if passed else "bad")


def _all(side: dict) -> dict:
    """The row of the table that counts all questions: its last."""
    return list(side["table"].values())[-1]


def verify_tiles(facts: Facts) -> list[Markup]:
    """The verdict in brief; none where nothing was verified."""
    result = facts.verify
    if result is None:
        return []
    cause = result["verdict"]["cause"]
    tiles = [
        tile(
            "Verified", "passed" if result["passed"] else "failed", CAUSES[cause], "good" if result["passed"] else "bad"
        )
    ]
    if result["logits"]:
        logits = result["logits"]["export"]
        decided = (
            f"{_share(logits['top1_decided'])} where float is decided"
            if logits["top1_decided"] is not None
            else f"of {result['logits']['positions']} positions"
        )
        tiles.append(tile("Same next token", _share(logits["top1"]), f"{decided}; KL divergence {_nats(logits['kl'])}"))
    return tiles


def verification(facts: Facts) -> Markup:
    """What verify found: verdict, reasons, next tokens, answers."""
    result = facts.verify
    if result is None:
        return section("verification", "Verification", undone("Not verified.", NO_VERIFY, "--verify verify.json"))
    verdict, parts = result["verdict"], []
    summary = f"{'Passed' if result['passed'] else 'Failed'}: {CAUSES[verdict['cause']]}."
    parts.append(
        el(
            "p",
            el("strong", summary),
            f" {verdict['advice'][0].upper()}{verdict['advice'][1:]}." if verdict["advice"] else None,
        )
    )
    if verdict["reasons"]:
        parts.append(el("ul", [el("li", reason) for reason in verdict["reasons"]], class_="reasons"))
    if verdict["first_bad_block"]:
        linear = [", linear ", el("code", verdict["first_bad_linear"])] if verdict["first_bad_linear"] else []
        parts.append(el("p", "It falls off first at ", el("code", verdict["first_bad_block"]), linear, "."))
    if result["logits"]:
        parts.append(_logits_table(result))
    if answers := (result["free_running"] or {}).get("answers"):
        parts.append(_answers_table(result["free_running"]["agreement"], answers))
    parts.append(
        el(
            "p",
            f"{len(result.get('samples', []))} images. {result['quantized']} against {result['model_path']}, on"
            f" {result['device']}.",
            class_="note",
        )
    )
    return section("verification", "Verification", parts)


def _logits_table(result: dict) -> Markup:
    logits, limits = result["logits"], result["thresholds"]
    measured = {  # what, key, how it is written, what is allowed
        "KL divergence of the next token, nats": ("kl", _nats, f"≤ {limits['kl']:g}"),
        "the same, worst image": ("kl_worst", _nats, ""),
        "Same token first": ("top1", _share, ""),
        f"the same, where float is decided ({logits['decided']} positions)": (
            "top1_decided",
            _share,
            f"≥ {percent(limits['top1'])}",
        ),
    }
    rows = [
        [what, form(logits["export"][key]), form(logits["rounded"][key]), allowed]
        for what, (key, form, allowed) in measured.items()
    ]
    return table(
        [f"Over {logits['positions']} positions", "export", "rounded afresh", "allowed"],
        rows,
        {1, 2, 3},
        class_="fitted",
    )


def _share(value: float | None) -> str:
    return "none" if value is None else percent(value)


def _answers_table(agreement: float, answers: list[dict]) -> Markup:
    rows = [
        [row["name"], row["float"], row["export"], f"{row['same_from_start']} of {row['tokens']}"] for row in answers
    ]
    heading = el(
        "summary",
        f"Answers that each model wrote itself: the same for {percent(agreement)} of their tokens, counted until they"
        " differ",
    )
    return el("details", heading, table(["Image", "float", "export", "same tokens"], rows, {3}, class_="flips"))


def _nats(value: float | None) -> str:
    return "NaN" if value is None else f"{value:.2g}"


def accuracy(facts: Facts) -> Markup:
    """What evaluate found: scores by category, difference, flips."""
    result = facts.evaluation
    if result is None:
        return section("accuracy", "Accuracy", undone("Not evaluated.", NO_EVALUATION, "--evaluation evaluation.json"))
    sides = result["sides"]
    rows = []
    for key, row in sides[0]["table"].items():
        points = [side["table"][key]["right"] for side in sides]
        change = [signed(round(points[1] - points[0], 4), "g")] if len(sides) == 2 else []
        rows.append([key, *points, *change, row["of"]])
    if "published" in sides[0]:
        norms = [side["published"]["Final Score Norm"] for side in sides]
        rows.append(
            [
                "Final Score Norm",
                *(f"{norm:.1f}" for norm in norms),
                *([signed(norms[1] - norms[0], ".1f")] if len(sides) == 2 else []),
                "",
            ]
        )
    head = ["Right answers", *(side["name"] for side in sides), *(["change"] if len(sides) == 2 else []), "of"]
    parts: list[Markup | None] = [table(head, rows, range(1, len(head)), class_="scores fitted")]
    if len(sides) == 2:
        parts += [difference_figure(result["difference"]), flips_table(result)]
    for side in sides:
        if side["unanswered"]:
            parts.append(
                hint(f"{side['name']}: {len(side['unanswered'])} questions have no answer and count as wrong.")
            )
        if side["troubles"]:
            parts.append(
                hint(
                    f"{side['name']}: "
                    + ", ".join(f"{count} × {kind}" for kind, count in side["troubles"].items())
                    + ", tried again where that can help."
                )
            )
    rule = f"an answer is scored: {RULES[result['match']]}"
    parts.append(
        el(
            "p",
            f"{result['data']['file']}, {result['data']['questions']} questions, sha256"
            f" {result['data']['sha256'][:16]}; {rule}. Greedy decoding.",
            class_="note",
        )
    )
    return section("accuracy", "Accuracy", parts)


def difference_figure(difference: dict) -> Markup:
    """The difference of two scores with its confidence interval."""
    low, high = difference["interval"]
    text = (
        f"Difference {signed(difference['points'], '.2f')} points, {percent(difference['level'], 0)} confidence"
        f" interval {signed(low, '.2f')} to {signed(high, '.2f')}"
        f" ({difference.get('by', 'paired bootstrap')}). Answers lost:"
        f" {difference['lost']}, gained: {difference['gained']}. Shaded: a drop of more than"
        f" {difference['max_drop']:g}, which --max_drop does not allow."
    )
    return el(
        "figure",
        interval_panel(difference["points"], low, high, difference["max_drop"]),
        el("figcaption", el("span", text)),
        class_="difference",
    )


def flips_table(result: dict) -> Markup | None:
    """The questions that one model answers and the other does not; None where there are none."""
    if not result["flips"]:
        return None
    names = [side["name"] for side in result["sides"]]
    said = lambda text: el("em", "no answer") if text is None else text
    rows = [
        [
            flip["where"].replace("\\", "/").rpartition("/")[2],
            flip["prompt"],
            " or ".join(flip["answers"]),
            *map(said, flip["predictions"]),
            "lost" if flip["lost"] else "gained",
        ]
        for flip in result["flips"]
    ]
    return el(
        "details",
        el("summary", f"Answers that flipped: {len(rows)}"),
        table(["Question", "Prompt", "Wanted", *names, ""], rows, class_="flips"),
    )
