"""The report's first line: may this export be deployed, and why or why not.

Four things must be shown: that the export is what its float model rounds to (verify), that it answers as well
(evaluate), that a server takes it, and that calibration covered what it will see. One that fails decides; one that is
open leaves the whole open, however good the others are.
"""

from dataclasses import dataclass
from typing import Literal

from ..base.config import ENOUGH_WORDS
from ..verify.verdict import CULPRITS, THRESHOLDS
from .facts import Facts
from .loading import Loading
from .parts import percent, signed

State = Literal["good", "bad", "open"]
WORDS: dict[State, str] = {"good": "Deploy", "bad": "Do not deploy", "open": "Not proven"}


@dataclass(frozen=True)
class Reason:
    """One of the things that must be shown. place: the section of the page that says more; decides: whether it counts
    for the whole, as a server does not while another takes the export.
    """

    state: State
    about: str
    text: str
    place: str
    decides: bool = True


@dataclass(frozen=True)
class Decision:
    """state and line: the answer; reasons: what it rests on, in the order of the page."""

    state: State
    line: str
    reasons: list[Reason]


def decide(facts: Facts) -> Decision:
    """The verdict on an export."""
    reasons = [_verified(facts), _evaluated(facts), *_served(facts.servers), _covered(facts)]
    reasons += [Reason("open", "Identity", doubt.rstrip("."), "summary") for doubt in facts.doubts]
    deciding = {reason.state for reason in reasons if reason.decides}
    state: State = "bad" if "bad" in deciding else "open" if "open" in deciding else "good"
    where = "; ".join(f"{loading.server} with {_numbers(loading.right)}" for loading in facts.servers if loading.right)
    why = "; ".join(reason.text for reason in reasons if reason.decides and reason.state == state)
    return Decision(state, f"{WORDS[state]}: {where if state == 'good' else why}.", reasons)


def _verified(facts: Facts) -> Reason:
    about, place, result = "Verification", "verification", facts.verify
    if result is None:
        return Reason("open", about, "not verified against its float model", place)
    if not result["passed"]:
        return Reason("bad", about, f"verify failed: {CULPRITS[result['verdict']['cause']]}", place)
    loose = [
        f"{name} {result['thresholds'][name]:g} in place of {limit:g}"
        for name, (limit, _) in THRESHOLDS.items()
        if (result["thresholds"][name] - limit) * (1 if name in ("kl", "clipped") else -1) > 0
    ]
    if loose:
        return Reason("open", about, f"verify passed with looser thresholds: {', '.join(loose)}", place)
    kl = f", KL divergence {result['logits']['export']['kl']:.2g} nats" if result["logits"] else ""
    return Reason("good", about, f"every tensor is right, all within the thresholds{kl}", place)


def _evaluated(facts: Facts) -> Reason:
    about, place, result = "Accuracy", "accuracy", facts.evaluation
    if result is None:
        return Reason("open", about, "accuracy not evaluated", place)
    if lacking := sum(len(side["unanswered"]) for side in result["sides"]):
        return Reason("bad", about, f"{lacking} answers of the evaluation are missing", place)
    if len(result["sides"]) == 1:
        return Reason("open", about, "one model alone was evaluated, beside no other", place)
    difference, count = result["difference"], result["data"]["questions"]
    change, allowed = f"{signed(difference['points'], '.2f')} points on {count} questions", difference["max_drop"]
    if difference["exceeded"]:
        return Reason("bad", about, f"{change}, more than the {allowed:g} allowed", place)
    if difference["interval"][0] < -allowed:
        low = signed(difference["interval"][0], ".2f")
        text = f"{change}, but its interval reaches {low}, beyond the {allowed:g} allowed: ask more"
        return Reason("open", about, text, place)
    return Reason("good", about, f"{change}, within the {allowed:g} allowed with its interval", place)


def _served(servers: list[Loading]) -> list[Reason]:
    taken, reasons = any(loading.right for loading in servers), []
    for loading in servers:
        if loading.right:
            wrong = [size for size, found in loading.sizes.items() if found]
            silent = any("without an error" in text for size in wrong for text in effects(loading, size))
            text = f"{loading.server} takes it, right on {_numbers(loading.right)}"
            text += f"; wrong without an error on {_numbers(wrong)}" if silent else ""
            reasons.append(Reason("good", loading.server, text, "servers"))
            continue
        rules = ", ".join(dict.fromkeys(finding.rule for finding in loading.errors))
        text = (
            f"{loading.server} has no loader for it" if loading.refuses else f"{loading.server} breaks on it: {rules}"
        )
        reasons.append(Reason("bad", loading.server, text, "servers", decides=not taken))
    return reasons


def effects(loading: Loading, size: int) -> list[str]:
    """What the server does about it on so many NPUs."""
    return [effect for finding in loading.sizes[size] for effect in finding.effects.values()]


def _numbers(sizes: list[int]) -> str:
    """[1, 2, 4] -> "1, 2 or 4 NPUs"."""
    words = f"{', '.join(map(str, sizes[:-1]))} or {sizes[-1]}" if sizes[1:] else str(sizes[0])
    return f"{words} NPU{'s' if sizes != [1] else ''}"


def _covered(facts: Facts) -> Reason:
    about, place, seen = "Coverage", "coverage", facts.run.get("tokens")
    if not seen:
        return Reason("open", about, "what calibration covered is not recorded", place)
    words = f"calibration saw {seen['different']} different tokens of text"
    shares = [
        (entry["outside"], entry["linears"][0])
        for block in facts.run["blocks"]
        for entry in block["ranges"]
        if entry.get("outside") is not None
    ]
    most, linear = max(shares, default=(0.0, ""))
    open_ = [f"{words}, fewer than {ENOUGH_WORDS}"] if seen["different"] < ENOUGH_WORDS else []
    if most > THRESHOLDS["clipped"][0]:
        open_.append(f"{percent(most)} of what {linear} reads of held-out samples is clipped")
    if open_:
        return Reason("open", about, ", and ".join(open_), place)
    return Reason("good", about, f"{words}; of held-out values {percent(most, 2)} at most are clipped", place)
