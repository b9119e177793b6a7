"""The section with pictures: questions, what was expected, and what each model said."""

from .facts import Facts
from .markup import Markup, el
from .parts import hint, section, undone
from .proof import NO_EVALUATION

PICTURE = "data:image/jpeg;base64,"


def answers(facts: Facts) -> Markup:
    """Examples that evaluate chose: those first whose points differ."""
    if facts.evaluation is None:
        return section("answers", "Answers", undone("Not evaluated.", NO_EVALUATION, "--evaluation evaluation.json"))
    shown, sides = facts.evaluation.get("examples", []), facts.evaluation["sides"]
    if not shown:
        return section("answers", "Answers", hint("This evaluation was written without examples; evaluate again."))
    names = [side["name"] for side in sides]
    differ = sum(len(set(example["points"])) > 1 for example in shown)
    what = f"{len(shown)} of {facts.evaluation['data']['questions']} questions"
    note = f", the {differ} first with different points" if differ else ", with equal points" * (len(sides) == 2)
    items = [_item(example, names) for example in shown]
    return section("answers", "Answers", el("p", f"{what}{note}.", class_="note"), el("ul", items, class_="answers"))


def _item(example: dict, names: list[str]) -> Markup:
    said = zip(names, example["predictions"], example["points"])
    rows = [_row(name, el("em", "no answer") if text is None else text, worth) for name, text, worth in said]
    wanted = _row("wanted", " or ".join(dict.fromkeys(example["answers"])), None)
    image = example["image"]
    picture = el("img", src=image, alt="") if str(image).startswith(PICTURE) else None
    differs = "differs" if len(set(example["points"])) > 1 else None
    return el("li", picture, el("div", el("p", example["prompt"]), el("dl", wanted, rows)), class_=differs)


def _row(name: str, text: str, worth: float | None) -> list[Markup]:
    mark = None if worth is None else el("span", f"{worth:g}", class_="good" if worth == 1 else "bad", title="points")
    return [el("dt", name), el("dd", text, mark)]
