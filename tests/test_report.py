"""The report as a reader meets it: in headless Chromium, with what is in it checked against the files that it is made
from.
"""

import copy
import functools
import io
import json
import math
import shlex
import shutil
from types import SimpleNamespace

import pytest
from browser import Browser
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import make, make_images

from quant import Calibrator, QuantConfig
from quant.commands.cli import main
from quant.evaluate.evaluate import Answers, summarize
from quant.evaluate.questions import Question, QuestionSet
from quant.export.reader import read
from quant.export.recipe import identities
from quant.files.fingerprints import model_digest
from quant.report import decide
from quant.report.axes import linear_axis, spread_axis
from quant.report.loading import Loading
from quant.report.markup import Markup, el
from quant.servers.rules import Finding
from quant.verify.verdict import THRESHOLDS

LENIENT = ["--threshold", "kl=9", "top1=0", "clipped=0.05"]  # random weights answer at random
HOSTILE = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (200, 100), (number * 6, 80, 120)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """out/: a small export; images/; verify.json; evaluation.json: 40 questions, 3 lost and 1 gained; what models said
    is hostile.
    """
    root = tmp_path_factory.mktemp("report")
    images = make_images(root / "images", 3)
    source = make(root / "src", "qwen2_vl", blocks=(2, 3))
    Calibrator(source, QuantConfig(anti_method="m2"), images).run().save(root / "out")
    assert (
        main(
            [
                "verify",
                str(root / "out"),
                "--model_path",
                str(source),
                "--images",
                str(images),
                "--tokens",
                "2",
                "--json",
                str(root / "verify.json"),
                "--quiet",
                *LENIENT,
            ]
        )
        == 0
    )
    questions = tuple(
        Question(
            str(i),
            f"data.jsonl:{i + 1}",
            (picture(i),),
            "What is written?",
            (f"answer {i}.",),
            ("even", "odd")[i % 2],
            False,
        )
        for i in range(40)
    )
    right = [f"answer {i}." for i in range(40)]
    float_said, int8_said = right[:], right[:]
    float_said[5] = HOSTILE
    for i in (7, 8, 9):
        int8_said[i] = HOSTILE
    sides = [
        Answers("float", {"arithmetic": "float"}, float_said, {}, 4.0, {}),
        Answers("int8", {"arithmetic": "int8", "files": model_digest(root / "out")}, int8_said, {}, 5.0, {}),
    ]
    summary = summarize(QuestionSet(root / "data.jsonl", False, questions), sides, rule="contains", max_drop=1, seed=0)
    (root / "evaluation.json").write_text(json.dumps(summary))
    other = Answers("int8", {"arithmetic": "int8", "files": "another export"}, right, {}, 5.0, {})
    summary = summarize(
        QuestionSet(root / "data.jsonl", False, questions), [sides[0], other], rule="contains", max_drop=1, seed=0
    )
    (root / "m4.evaluation.json").write_text(json.dumps(summary))
    (root / "analysis.json").write_text(json.dumps(analysis(identities(None, source))))
    return root


def analysis(identity: dict) -> dict:
    """What `analyze` writes, with costs that were made up: block by block less, down_proj the most."""
    attention, mlp = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
    shares = {attention: 0.2, ("self_attn.o_proj",): 0.1, mlp: 0.2, ("mlp.down_proj",): 0.5}
    groups = [
        {
            "linears": [f"model.layers.{block}.{name}" for name in group],
            "tower": "language",
            "block": block,
            "share": share / 3,
            "static": share * 1e-3 / (block + 1),
            "dynamic": share * 1e-4,
            "company": share * 1e-3,
        }
        for block in range(3)
        for group, share in shares.items()
    ]
    return {"groups": groups, "kl": 0.0034, "positions": 321, "identity": identity}


def test_what_each_group_costs(desktop):
    text = desktop.run("return document.querySelector('#costs').innerText")
    assert "50.0\u00a0% W8A8, 50.0\u00a0% float" in text and "321 held-out" in text
    rows = "#costs-groups tbody tr"
    assert desktop.run(f"return document.querySelectorAll('{rows}').length") == 12
    assert texts(desktop, f"{rows}:first-child td") == [
        "1",
        "model.layers.0.mlp.down_proj",
        "float",
        "16.7\u00a0%",
        "0.5",
        "0.05",
        "0.5",
    ]
    assert texts(desktop, "#costs-flag") == ["--disable_names model.layers.0.mlp.down_proj"]
    assert desktop.run("return document.querySelectorAll('#costs svg').length") == 1


def test_costs_of_another_float_model_are_refused(folder, tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps(analysis({"float": "0" * 64})))
    assert main(["report", str(folder / "out"), "--analysis", str(tmp_path / "a.json")]) == 2
    assert "is of another float model (0000000000000000) than this export was made from" in capsys.readouterr().err


@pytest.fixture(scope="module")
def report(folder):
    file = folder / "report.html"
    results = ["--verify", str(folder / "verify.json"), "--evaluation", str(folder / "evaluation.json")]
    results += ["--peers", str(folder / "m4.evaluation.json"), "--analysis", str(folder / "analysis.json")]
    assert (
        main(["report", str(folder / "out"), *results, "--images", str(folder / "images"), "--output", str(file)]) == 0
    )
    return file


@pytest.fixture(scope="module")
def desktop(report):
    with Browser(1200, 900) as browser:
        browser.open(report)
        yield browser


@pytest.fixture(scope="module")
def phone_at_night(report):
    with Browser(360, 780, dark=True, touch=True) as browser:
        browser.open(report)
        yield browser


def texts(browser, selector):
    return browser.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent.trim())")


def test_no_errors_and_nothing_of_what_it_quotes_runs(desktop, phone_at_night):
    for browser in (desktop, phone_at_night):
        assert browser.console() == []
        assert browser.run("return document.title") == "Qwen2-VL, W8A8: out"
    assert desktop.run("return document.scripts.length") == 1
    assert HOSTILE in texts(desktop, "#accuracy td")


def test_sections_and_their_links(desktop):
    names = desktop.run("return [...document.querySelectorAll('main > section')].map(e => e.id)")
    assert names == [
        "summary",
        "verification",
        "accuracy",
        "peers",
        "answers",
        "servers",
        "weakest",
        "costs",
        "errors",
        "coverage",
        "ranges",
        "clipping",
        "layers",
        "images",
        "timings",
    ]
    assert (
        desktop.run("return [...document.querySelectorAll('nav a')].map(a => a.getAttribute('href').slice(1))") == names
    )


def test_nothing_comes_from_elsewhere(report, desktop):
    assert (
        desktop.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
        == 0
    )
    text = report.read_text()
    assert "http://" not in text and "https://" not in text and "@import" not in text


def test_every_linear_is_there_with_its_decision(folder, desktop):
    export = read(folder / "out")
    recipe = json.loads((folder / "out" / "quant_recipe.json").read_text())
    rows = desktop.run(
        "return [...document.querySelectorAll('.layers tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    said = {row[0]: row for row in rows}
    assert len(rows) == len(said) and set(said) == set(export.linear_names) | set(recipe["float"])
    for name in export.linear_names:
        assert said[name][2] == "int8"
        assert float(said[name][4]) == pytest.approx(export.load(f"{name}.input_scale").item(), rel=0.01)
        assert int(said[name][5]) == export.load(f"{name}.input_offset").item()
    for name, why in recipe["float"].items():
        assert said[name][2:4] == ["float", why]
    assert texts(desktop, "#layers summary") == [
        "Vision tower: 6 int8, 2 float",
        "Language model: 18 int8, 3 float",
        "Outside the blocks: 0 int8, 3 float",
    ]
    strong = desktop.run(
        "return [...document.querySelectorAll('#layers svg rect.after')].map(r => r.getAttribute('fill-opacity'))"
    )
    assert strong.count("1.000") == 24 and strong.count("0.000") == 5


def test_answers_of_both_models_stand_beside_their_picture(desktop, phone_at_night):
    for browser in (desktop, phone_at_night):
        cards = browser.run(
            "return [...document.querySelectorAll('#answers li')].map(e => [...e.querySelectorAll('dd')].map(d =>"
            " d.firstChild.textContent))"
        )
        assert len(cards) == 40
        for wanted, float_said, int8_said in cards[:4]:  # what flipped comes first
            assert (float_said == wanted) != (int8_said == wanted) and HOSTILE in (float_said, int8_said)
        assert all(wanted == float_said == int8_said for wanted, float_said, int8_said in cards[4:])
        assert browser.run("return document.querySelectorAll('#answers li.differs').length") == 4
        widths = browser.run(
            "return [...document.querySelectorAll('#answers img')].slice(0, 4).map(e => e.naturalWidth)"
        )
        assert widths == [160] * 4
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_plots_show_the_run(folder, desktop):
    run = json.loads((folder / "out" / "quant_run.json").read_text())
    told = texts(desktop, "#ranges svg title")
    assert len(told) == sum(len(block["ranges"]) for block in run["blocks"]) == 15
    low, high = run["blocks"][0]["ranges"][0]["before"]
    assert any(f"before {low:.3g} to {high:.3g}" in text for text in told)
    told = texts(desktop, "#errors .panels:nth-of-type(1) svg title")
    assert [text.partition(",")[0] for text in told] == ["block 0", "block 1", "block 0", "block 1", "block 2"]
    # In the plot the pale bar encloses the solid one wherever smoothing narrowed the range.
    heights = desktop.run(
        "return [...document.querySelectorAll('#ranges .mark')].map(g => [...g.querySelectorAll('.before,"
        " .after')].map(r => r.getBoundingClientRect().height))"
    )
    narrowed = [
        entry["after"][1] - entry["after"][0] < entry["before"][1] - entry["before"][0]
        for block in run["blocks"]
        for entry in block["ranges"]
    ]
    assert sum(narrowed) > 10 and sum(before > after for before, after in heights) == sum(narrowed)
    circles = desktop.run(
        "return [...document.querySelectorAll('#errors .panels:nth-of-type(1) .mark')].map(g =>"
        " [...g.querySelectorAll('circle')].map(c => +c.getAttribute('cy')))"
    )
    for block, (plain, chosen) in zip(run["blocks"], circles):
        assert (plain > chosen) == (block["snr_plain_db"] < block["snr_db"])  # y runs downward


def test_what_verify_measured(folder, desktop):
    result = json.loads((folder / "verify.json").read_text())
    tiles = texts(desktop, ".tile.good")
    assert len(tiles) == 1 and tiles[0].startswith("Verifiedpassed")
    rows = desktop.run(
        "return [...document.querySelectorAll('#verification table:first-of-type tr')].slice(0, 4).map(r =>"
        " [...r.cells].map(c => c.textContent))"
    )
    assert rows[3] == [
        "Same token first",
        *(f"{100 * result['logits'][model]['top1']:.1f}\u00a0%" for model in ("export", "rounded")),
        "",
    ]
    assert rows[1][3] == "≤ 9"
    built_up = texts(desktop, "#errors .panels:nth-of-type(2) svg title")
    assert built_up == [
        f"block {b['index']}, rounded afresh {b['rounded']['snr_db']:.1f} dB, exported {b['export']['snr_db']:.1f} dB"
        for b in result["blocks"]
    ]
    linears = [entry for block in result["blocks"] for entry in block["linears"]]
    clipped = texts(desktop, "#clipping svg title")
    alone = texts(desktop, "#errors .panels:nth-of-type(3) svg title")
    assert (
        {text.partition(":")[0] for text in clipped}
        == {text.partition(":")[0] for text in alone}
        == {entry["linear"] for entry in linears}
    )
    worst = max(linears, key=lambda entry: entry["clipped_share"])
    assert f"Largest: {100 * worst['clipped_share']:.2f}\u00a0%, {worst['linear']}." in desktop.run(
        "return document.querySelector('#clipping').textContent"
    )
    strength = desktop.run(
        "return [...document.querySelectorAll('#clipping rect.clipped')].map(r =>"
        " [r.parentNode.textContent.split(':')[0], +r.getAttribute('fill-opacity')])"
    )
    assert max(strength, key=lambda pair: pair[1])[0] == worst["linear"] or worst["clipped_share"] == 0


def test_scores_and_flips(desktop):
    rows = desktop.run(
        "return [...document.querySelectorAll('.scores tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows == [
        ["Right answers", "float", "int8", "change", "of"],
        ["even", "20", "19", "−1", "20"],
        ["odd", "19", "18", "−1", "20"],
        ["Right", "39", "37", "−2", "40"],
    ]
    assert len(texts(desktop, "#accuracy .flips tbody tr")) == 4
    tile = desktop.run("return document.querySelector('.tile.bad').textContent")
    assert "Accuracy, %97.5 → 92.5" in tile and "−5.00 points, more than the 1 allowed" in tile


def test_images_are_shown(desktop):
    sizes = desktop.run(
        "return Promise.all([...document.querySelectorAll('#images img')].map(i => i.decode().then(() =>"
        " [i.naturalWidth, i.src.slice(0, 22)])))"
    )
    assert len(sizes) == 3 and all(width > 0 and start == "data:image/jpeg;base64" for width, start in sizes)
    shown = desktop.run("return document.querySelector('#images').textContent")
    assert "samples of text alone" in shown and "not found" not in shown and "not at hand" not in shown


def test_the_filter_narrows_the_tables(desktop):
    desktop.run("const f = document.getElementById('filter'); f.value = 'o_PROJ'; f.dispatchEvent(new Event('input'))")
    assert (
        len(
            desktop.run(
                "return [...document.querySelectorAll('.layers tbody tr')].filter(r => r.offsetParent).map(r =>"
                " r.cells[0].textContent)"
            )
        )
        == 3
    )
    desktop.run("const f = document.getElementById('filter'); f.value = ''; f.dispatchEvent(new Event('input'))")
    assert desktop.run("return [...document.querySelectorAll('#layers tbody tr')].filter(r => r.hidden).length") == 0


def test_legible_on_a_phone(phone_at_night):
    assert phone_at_night.run("return document.documentElement.scrollWidth") == 360
    sizes = phone_at_night.run(
        "return [...document.querySelectorAll('svg text')].map(t => parseFloat(getComputedStyle(t).fontSize) *"
        " t.getScreenCTM().a)"
    )
    assert min(sizes) > 8.5
    outside = phone_at_night.run(
        "return [...document.querySelectorAll('svg text')].filter(t => { const b = t.getBoundingClientRect(), s ="
        " t.ownerSVGElement.getBoundingClientRect(); return b.left < s.left - 1 || b.right > s.right + 1 }).map(t =>"
        " t.textContent)"
    )
    assert outside == []


CONTRAST = """
const rgb = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.slice(0, 3) };
const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => { const [r, g, b] = rgb(c).map(v => linear(v / 255)); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (c !== 'rgba(0, 0, 0, 0)') return c;
  }
};
const words = 'p, td, th, li, b, button, small, h1, h2, h3, strong, a, code, dt, dd, span, summary, svg text,'
  + ' figcaption';
const worst = {};
for (const e of document.querySelectorAll(words)) {
  const style = getComputedStyle(e), a = light(e instanceof SVGElement ? style.fill : style.color);
  const b = light(ground(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const name = e.tagName + '.' + (e.getAttribute('class') || '');
  worst[name] = Math.min(worst[name] || 99, ratio);
}
return Object.entries(worst).filter(([, ratio]) => ratio < 4.5)
"""


def test_text_stands_out_by_day_and_by_night(desktop, phone_at_night):
    assert desktop.run(CONTRAST) == [] and phone_at_night.run(CONTRAST) == []
    grounds = [
        browser.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        for browser in (desktop, phone_at_night)
    ]
    assert min(grounds[0]) > 200 and max(grounds[1]) < 60


# ---- the verdict


def test_the_verdict_stands_first_and_says_why(desktop, phone_at_night):
    for browser in (desktop, phone_at_night):
        first = browser.run("return document.querySelector('.verdict p').textContent")
        assert first == "Do not deploy: −5.00 points on 40 questions, more than the 1 allowed."
        below = "return document.querySelector('.verdict').getBoundingClientRect().bottom"
        assert browser.run(below) < browser.run("return document.querySelector('main').getBoundingClientRect().top")
    rows = desktop.run(
        "return [...document.querySelectorAll('.verdict li')].map(r => [...r.children].map(c => c.textContent))"
    )
    told = {about: (state, text) for state, about, text in rows}
    assert told["Verification"][0] == "open" and "kl 9 in place of 0.02" in told["Verification"][1]
    assert told["Accuracy"][0] == "fails" and told["Coverage"][0] == "open"
    assert told["MindIE"] == (
        "shown",
        "MindIE takes it, right on 1 NPU; wrong without an error on 2, 4, 8 or 16 NPUs",
    )
    assert told["vLLM-Ascend"] == ("shown", "vLLM-Ascend takes it, right on 1 or 2 NPUs")
    links = desktop.run("return [...document.querySelectorAll('.verdict a')].map(a => a.getAttribute('href'))")
    assert all(desktop.run(f"return document.querySelectorAll({link!r}).length") == 1 for link in links)


PROVEN = {
    "verify": {
        "passed": True,
        "verdict": {"cause": None},
        "thresholds": {name: limit for name, (limit, _) in THRESHOLDS.items()},
        "logits": {"export": {"kl": 0.004}},
    },
    "evaluation": {
        "passed": True,
        "sides": [{"unanswered": []}, {"unanswered": []}],
        "data": {"questions": 1000},
        "difference": {"points": 0.1, "interval": [-0.4, 0.6], "max_drop": 1.0, "exceeded": False},
    },
    "run": {
        "tokens": {"different": 700},
        "blocks": [{"ranges": [{"outside": 0.001, "linears": ["q"]}, {"outside": None, "linears": ["o"]}]}],
    },
    "servers": [
        Loading("MindIE", "", None, [], {1: [], 2: [Finding("", "", {"mindie": "wrong output without an error"}, "")]}),
        Loading("vLLM-Ascend", "", "has none", [], {1: [], 2: []}),
    ],
    "doubts": [],
}
BROKEN_RULE = Finding("config.json", "no key", {"mindie": "KeyError"}, "write it", "error", "quantize-key")


def changed(facts, path, value):
    """The same facts with one value, at keys joined by dots, in the place of another."""
    facts = copy.deepcopy(facts)
    *way, last = path.split(".")
    functools.reduce(lambda found, key: found[int(key) if key.isdigit() else key], way, facts)[last] = value
    return facts


@pytest.mark.parametrize(
    "path, value, line",
    [
        ("doubts", [], "Deploy: MindIE with 1 NPU."),
        ("doubts", ["v.json is of an unknown export."], "Not proven: v.json is of an unknown export."),
        ("verify", None, "Not proven: not verified against its float model."),
        ("verify.thresholds.top1", 0.5, "Not proven: verify passed with looser thresholds: top1 0.5 in place of 0.97."),
        ("verify.thresholds.top1", 0.99, "Deploy: MindIE with 1 NPU."),
        ("evaluation", None, "Not proven: accuracy not evaluated."),
        ("evaluation.sides", [{"unanswered": []}], "Not proven: one model alone was evaluated, beside no other."),
        ("evaluation.sides.1.unanswered", [{}, {}], "Do not deploy: 2 answers of the evaluation are missing."),
        (
            "evaluation.difference.interval",
            [-1.3, 0.6],
            "Not proven: +0.10 points on 1000 questions, but its interval reaches −1.30, beyond the 1 allowed: ask"
            " more.",
        ),
        (
            "evaluation.difference.exceeded",
            True,
            "Do not deploy: +0.10 points on 1000 questions, more than the 1 allowed.",
        ),
        ("run.tokens", None, "Not proven: what calibration covered is not recorded."),
        ("run.tokens.different", 12, "Not proven: calibration saw 12 different tokens of text, fewer than 600."),
        (
            "run.blocks",
            [{"ranges": [{"outside": 0.2, "linears": ["o"]}]}],
            "Not proven: 20.0\u00a0% of what o reads of held-out samples is clipped.",
        ),
        (
            "servers",
            [Loading("MindIE", "", None, [BROKEN_RULE], {1: []}), Loading("vLLM-Ascend", "", "has none", [], {1: []})],
            "Do not deploy: MindIE breaks on it: quantize-key; vLLM-Ascend has no loader for it.",
        ),
        (
            "servers",
            [Loading("MindIE", "", None, [BROKEN_RULE], {1: []}), Loading("vLLM-Ascend", "", None, [], {1: [], 2: []})],
            "Deploy: vLLM-Ascend with 1 or 2 NPUs.",
        ),
    ],
)
def test_one_thing_decides(path, value, line):
    assert decide(SimpleNamespace(**changed(PROVEN, path, value))).line == line


def test_a_failure_outweighs_what_is_open():
    facts = changed(changed(PROVEN, "verify.passed", False), "run.tokens", None)
    facts["verify"]["verdict"] = {"cause": "export"}
    assert decide(SimpleNamespace(**facts)).line == "Do not deploy: verify failed: the export is damaged."


def test_the_command_prints_the_verdict(folder, tmp_path, capsys):
    assert main(["report", str(folder / "out"), "--output", str(tmp_path / "r.html")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("Not proven: not verified") and max(map(len, lines[1:])) <= 80


def test_the_servers_and_their_numbers_of_cards(desktop):
    rows = desktop.run(
        "return [...document.querySelectorAll('.servers tbody tr')].map(r => [...r.cells].slice(1).map(c =>"
        " c.textContent))"
    )
    assert [row[1:] for row in rows] == [["right", *["silently wrong"] * 4], ["right", "right", "no", "no", "no"]]
    notes = texts(desktop, "#servers li")
    assert any("attn.proj of the vision tower transposed" in note and "--vision float" in note for note in notes)


def test_the_weakest_linears_are_sorted_and_copied(folder, desktop):
    result = json.loads((folder / "verify.json").read_text())
    linears = {entry["linear"]: entry for block in result["blocks"] for entry in block["linears"]}
    names = "#weakest tbody code"
    shown = texts(desktop, names)
    assert shown == sorted(linears, key=lambda name: linears[name]["export"]["snr_db"]) and len(shown) == 24
    click = "document.querySelectorAll('#weakest th button')[{}].click()"
    desktop.run(click.format(2))
    afresh = [linears[name]["rounded"]["snr_db"] for name in texts(desktop, names)]
    assert afresh == sorted(afresh) and afresh[0] < afresh[-1]
    desktop.run(click.format(2))
    assert [linears[name]["rounded"]["snr_db"] for name in texts(desktop, names)] == afresh[::-1]
    assert desktop.run("return [...document.querySelectorAll('#weakest th')].map(h => h.ariaSort)")[2] == "descending"
    desktop.run("navigator.clipboard.writeText = async text => { window.copied = text }")
    desktop.run("document.querySelector('[data-copy=\"#weakest-linears\"]').click()")
    copied = [line.split("\t") for line in desktop.run("return window.copied").splitlines()]
    assert [row[0] for row in copied] == ["Linear", *texts(desktop, names)] and {len(row) for row in copied} == {7}
    desktop.run(click.format(0))
    assert texts(desktop, names) == sorted(linears)


def test_what_float_would_add_is_what_it_adds(folder, desktop, tmp_path):
    """The flags that are copied are taken by `quantize`, and the export grows by what the table says."""
    desktop.run("navigator.clipboard.writeText = async text => { window.copied = text }")
    desktop.run("document.querySelector('[data-copy=\"#weakest-flags\"]').click()")
    flags = shlex.split(desktop.run("return window.copied"))
    before = read(folder / "out")
    paths = ["--model_path", folder / "src", "--calib_images", folder / "images", "--save_directory", tmp_path / "out"]
    common = ["--anti_method", "m2", "--device_type", "cpu", "--calib_text", "none", "--quiet"]
    assert main(["quantize", *map(str, paths), *common, *flags]) == 0
    after = read(tmp_path / "out")
    gone = set(before.linear_names) - set(after.linear_names)
    assert len(gone) >= 3 and set(after.linear_names) < set(before.linear_names)
    nbytes = lambda export, name: sum(export.tensors[part].nbytes for part in export.parts(f"{name}.weight"))
    grown = {name: after.tensors[f"{name}.weight"].nbytes - nbytes(before, name) for name in gone}
    cells = desktop.run(
        "return [...document.querySelectorAll('#weakest tbody tr')].map(r => [r.cells[0].textContent,"
        " +r.cells[6].firstChild.dataset.value])"
    )
    assert {name: value for name, value in cells if name in gone} == grown


def test_others_stand_beside(folder, desktop, tmp_path, capsys):
    rows = desktop.run(
        "return [...document.querySelectorAll('.peers tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert rows[0] == ["Right answers", "float", "int8, this export", "m4", "of"]
    assert rows[3] == ["Right", "39", "37", "40", "40"] and rows[5][2:4] == ["−5.00", "+2.50"]
    other = json.loads((folder / "m4.evaluation.json").read_text())
    other["data"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    words = ["--evaluation", str(folder / "evaluation.json"), "--peers", str(tmp_path / "other.json")]
    assert main(["report", str(folder / "out"), *words, "--output", str(tmp_path / "r.html")]) == 2
    assert "other.json: is of other questions (0000000000000000) than" in capsys.readouterr().err
    assert main(["report", str(folder / "out"), *words[2:], "--output", str(tmp_path / "r.html")]) == 2


# ---- without some of it


def test_the_directory_is_left_as_it_is_and_missing_parts_are_told(folder, tmp_path):
    before = model_digest(folder / "out")
    names = sorted(path.name for path in (folder / "out").iterdir())
    assert main(["report", str(folder / "out"), "--output", str(tmp_path / "r.html")]) == 0
    assert model_digest(folder / "out") == before and sorted(path.name for path in (folder / "out").iterdir()) == names
    text = (tmp_path / "r.html").read_text()
    assert "Not evaluated." in text and text.count("Not verified") == 4 and "3 of 3 were not found" in text
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_an_export_by_another_tool(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    for name in ("quant_recipe.json", "quant_run.json"):
        (tmp_path / "out" / name).unlink()
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "made by another tool" in text and text.count("Not recorded") == 5
    assert text.count('class="chip int8"') == 24 and "visual.merger.mlp.0" in text


def test_an_export_by_the_vendors_engine(folder, tmp_path):
    shutil.copytree(folder / "out", tmp_path / "out")
    for name, changes in (
        ("quant_recipe.json", {"msmodelslim": "26.1.0", "smoothed_groups": None, "alpha": None}),
        ("quant_run.json", {"blocks": []}),
    ):
        file = tmp_path / "out" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert main(["report", str(tmp_path / "out"), "--output", str(tmp_path / "r.html")]) == 0
    text = (tmp_path / "r.html").read_text()
    assert "m2, by msmodelslim 26.1.0" in text and text.count("Not recorded") == 2


def test_scores_of_other_files_are_refused(folder, tmp_path, capsys):
    shutil.copytree(folder / "out", tmp_path / "out")
    words = ["--evaluation", str(folder / "evaluation.json"), "--output", str(tmp_path / "r.html")]
    assert main(["report", str(tmp_path / "out"), *words]) == 0, "a copy is the same model"
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert main(["report", str(tmp_path / "out"), *words]) == 2
    assert "evaluation.json: was measured on another export" in capsys.readouterr().err


def test_long_words_do_not_widen_a_phone(folder, tmp_path):
    long = "language_model.model.layers.79." + "x" * 200
    result, scores = (json.loads((folder / name).read_text()) for name in ("verify.json", "evaluation.json"))
    result["blocks"][0]["linears"][0] |= {"clipped_share": 0.5, "linear": long}
    result["verdict"] |= {"reasons": [long], "first_bad_block": long, "first_bad_linear": long, "advice": long}
    result |= {"quantized": long, "model_path": long}
    scores["flips"][0] |= {"prompt": long, "answers": [long], "predictions": [long, None]}
    scores["sides"][0]["troubles"], scores["data"]["file"] = {long: 3}, long
    for name, value in (("verify.json", result), ("evaluation.json", scores)):
        (tmp_path / name).write_text(json.dumps(value))
    words = [
        "--verify",
        str(tmp_path / "verify.json"),
        "--evaluation",
        str(tmp_path / "evaluation.json"),
        "--output",
        str(tmp_path / "r.html"),
    ]
    assert main(["report", str(folder / "out"), *words]) == 0
    with Browser(360, 780, touch=True) as browser:
        browser.open(tmp_path / "r.html")
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run("return document.documentElement.scrollWidth") == 360 and browser.console() == []


def test_a_damaged_export_is_said_to_be_one(folder, tmp_path):
    result = json.loads((folder / "verify.json").read_text())
    verdict = {
        "cause": "export",
        "reasons": ["x.deq_scale: is <wrong>"],
        "advice": "write it again",
        "first_bad_block": "x.0",
        "first_bad_linear": None,
    }
    result |= {"passed": False, "verdict": verdict, "blocks": [], "logits": None, "free_running": None}
    (tmp_path / "verify.json").write_text(json.dumps(result))
    assert (
        main(
            [
                "report",
                str(folder / "out"),
                "--verify",
                str(tmp_path / "verify.json"),
                "--output",
                str(tmp_path / "r.html"),
            ]
        )
        == 0
    )
    text = (tmp_path / "r.html").read_text()
    assert (
        "Failed: the export is damaged." in text
        and "Write it again." in text
        and "x.deq_scale: is &lt;wrong&gt;" in text
    )
    assert 'class="tile bad"' in text and text.count("Verify found damage and ran no block.") == 3


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["nowhere"], 2, "not an Ascend export"),
        (
            ["OUT", "--evaluation", "nowhere.json"],
            2,
            "nowhere.json: no such file; `python -m quant evaluate --json FILE` writes it",
        ),
        (["OUT", "--evaluation", "OUT/config.json"], 1, "config.json: has no data"),
        (["OUT", "--verify", "OUT/config.json"], 1, "config.json: has no passed; `python -m quant verify --json FILE`"),
        (["OUT", "--images", "nowhere"], 2, "nowhere: no such folder"),
        (["OUT", "--output", "nowhere/r.html"], 1, "--output nowhere/r.html: No such file or directory"),
    ],
)
def test_requests_that_cannot_be_met(folder, words, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *(word.replace("OUT", str(folder / "out")) for word in words)]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


# ---- the pieces


def test_markup_is_escaped():
    assert (
        el("td", "a<b", Markup("<i></i>"), None, [1, "&"], class_='x"y', hidden=True, id=None)
        == '<td class="x&quot;y" hidden>a&lt;b<i></i>1&amp;</td>'
    )


numbers = st.floats(-1e6, 1e6)


@given(low=numbers, span=st.floats(1e-3, 1e6))
def test_linear_axis(low, span):
    axis = linear_axis(low, low + span)
    assert axis.low <= low + 1e-6 * span and axis.high >= low + span - 1e-6 * span
    assert 3 <= len(axis.ticks) <= 8
    places = [axis(tick) for tick in axis.ticks]
    assert places == sorted(places, reverse=True) and len({round(place) for place in places}) == len(places)


@given(low=st.floats(-1e5, 0), high=st.floats(0, 1e5))
def test_spread_axis(low, high):
    axis = spread_axis(low, high)
    assert 0 in axis.ticks and all(axis.low <= tick <= axis.high for tick in axis.ticks)
    places = [axis(tick) for tick in axis.ticks]
    assert all(math.isfinite(place) for place in places) and all(a - b >= 12 for a, b in zip(places, places[1:]))
