"""The section that sets other exports of the same model beside this one, on the same questions."""

from .facts import Facts
from .markup import Markup, el
from .parts import hint, percent, section, signed, table

MORE = "python -m quant report OUT --evaluation evaluation.json --peers OTHER.json ..."


def peers(facts: Facts) -> Markup:
    """Float, this export and each peer: right answers by category, difference to float with its interval."""
    if not facts.peers or facts.evaluation is None:
        text = "Nothing beside it: evaluations of other exports on the same questions stand here with "
        return section("peers", "Beside others", hint(text, el("code", MORE), "."))
    own = facts.evaluation
    results = {"int8, this export": own, **facts.peers}
    count = own["data"]["questions"]
    rows = [
        [key, row["right"], *(result["sides"][1]["table"][key]["right"] for result in results.values()), row["of"]]
        for key, row in own["sides"][0]["table"].items()
    ]
    total = list(own["sides"][0]["table"])[-1]
    float_right = own["sides"][0]["table"][total]["right"]
    shares = [percent(result["sides"][1]["table"][total]["right"] / count) for result in results.values()]
    rows.append(["Accuracy", percent(float_right / count), *shares, ""])
    differences = [result["difference"] for result in results.values()]
    rows.append(["points to float", "", *(signed(one["points"], ".2f") for one in differences), ""])
    intervals = [" to ".join(signed(end, ".2f") for end in one["interval"]) for one in differences]
    rows.append([f"{percent(differences[0]['level'], 0)} interval", "", *intervals, ""])
    rows.append(["lost, gained", "", *(f"{one['lost']}, {one['gained']}" for one in differences), ""])
    head = ["Right answers", "float", *results, "of"]
    return section("peers", "Beside others", table(head, rows, range(1, len(head)), class_="fitted peers"))
