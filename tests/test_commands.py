"""Every command that README.md and the pages of docs/ show, as it stands there and in its order, in a folder that has
what the commands name: run, or listed here with the reason why not.
"""

import argparse
import base64
import importlib
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import make, make_images

from quant import Calibrator, QuantConfig
from quant.commands.cli import COMMANDS, CONSOLE, main

ROOT = Path(__file__).resolve().parent.parent
# But docs/ppocr.md: its commands need onnxruntime, and tests/ocr has them.
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "ppocr.md"]
PAGES = [ROOT / "README.md", *PAGES, ROOT / "examples" / "README.md"]
ELSEWHERE = {  # how a command begins -> why it is not run here
    "make ": "makes an environment and takes minutes: .ci/run, and people",
    "pip install": "tests/test_wheel.py installs the wheel into an environment of its own",
    "python3 -c": "tests/test_first_hour.py",
    "docker build": "there is no builder at hand: the files are linted",
    "vllm serve": "needs vLLM-Ascend and an NPU",
    "cd /usr/local/Ascend/mindie": "needs MindIE and an NPU",
    "python -m quant serve": "goes on until it is stopped: tests/test_serve.py starts it and asks it",
    "curl -s http://127.0.0.1:8000": "needs that server: tests/test_serve.py asks the same",
    "evalscope ": "another project's, with an environment of its own: what it gave is in docs/serve.md",
    "LMUData=DATA python -m vlmeval": "the same",
    "python bench/accuracy/accuracy.py --model_path /models": "hours, and an NPU; make accuracy-short runs the tool",
    "torchrun ": "several hosts: tests/test_launcher.py",
    "python -m quant fetch-coco": "needs a network: tests/test_fetch_coco.py has a server of its own",
    "python quant/ppocr/": "needs onnxruntime: tests/ocr",
    "python examples/": "minutes to hours: tests/test_examples.py, with fewer images",
    "rm out/drawn": "belongs to the command before it",
    "cp calibImages": "the same",
    "python -m quant quantize --model_path examples/": "tests/test_examples.py, with fewer images",
    "python -m quant evaluate --model_path examples/": "the same",
    "export ASCEND_RT_VISIBLE_DEVICES": "says which NPUs; there is none",
}
NEEDS_SERVER = "--endpoint "  # tests/test_evaluate.py and tests/test_serve.py ask servers of their own
SHELL = ("cat ",)
COMMAND = re.compile(
    r"(\w+=\w+ )?(python3?|make|pip|export|ascend-vlm-quant|cat|cd|docker|vllm|torchrun|curl|evalscope|atc) "
)
MADE_BEFORE = {
    "deployment.md",
    "evaluate.md",
    "mindie_format.md",
    "report.md",
    "verify.md",
}  # pages that begin with an OUT


def blocks(text: str) -> list[tuple[str, str]]:
    """("shell" or "python", its lines) of every block of commands; blocks in other languages are left out."""
    found: list[tuple[str, list[str]]] = []
    fence, before = None, ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = line[3:] if fence is None else None
            if fence in ("bash", "python"):
                found.append(("shell" if fence == "bash" else "python", []))
        elif fence is not None:
            if fence in ("bash", "python"):
                found[-1][1].append(line)
        elif line.startswith("    "):
            if not before.startswith("    "):
                found.append(("python" if line.startswith(("    from ", "    import ")) else "shell", []))
            found[-1][1].append(line[4:])
        before = line
    return [(kind, "\n".join(lines)) for kind, lines in found]


def commands(page: Path) -> list[tuple[str, str]]:
    """("shell", command line) and ("python", source) in the order of the page."""
    found = []
    for kind, lines in blocks(page.read_text()):
        if kind == "python":
            if lines.startswith("from quant import"):
                found.append((kind, lines))
            continue
        for line in re.sub(r"\\\n +|(?<=,)\n +(?=\")", " ", lines).splitlines():
            words = re.sub(r"\s+#.*", "", line).strip()
            if COMMAND.match(words):
                found += [(kind, part) for part in re.split(r"; (?=python|rm|cp)", words)]
    return found


def elsewhere(command: str) -> str | None:
    """The key of the reason why a command is not run here."""
    return next((start for start in ELSEWHERE if command.startswith(start)), None)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """What the pages' commands name: checkpoints, pictures, questions."""
    root = tmp_path_factory.mktemp("shop")
    make(root / "SRC", "qwen2_vl")
    make(root / "llava-1.5-7b-hf", "llava")
    (root / "Qwen2-VL-7B-Instruct").symlink_to(root / "SRC")
    for name in ("IMAGES", "photo_folder", "calibImages"):
        make_images(root / name, 2)
    picture = io.BytesIO()
    Image.new("RGB", (56, 56), "red").save(picture, "PNG")
    code = base64.b64encode(picture.getvalue()).decode()
    row = f"0\t{code}\tWhich colour?\t['red']\tRegular Text Recognition\n"
    (root / "OCRBench.tsv").write_text("index\timage\tquestion\tanswer\tcategory\n" + row)
    (root / "config.json").write_text("{}")
    (root / "quant").symlink_to(ROOT / "quant")
    return root


@pytest.fixture(scope="module")
def exported(shop, tmp_path_factory):
    """OUT, for the pages that begin with one: made for several NPUs, as they say."""
    out = tmp_path_factory.mktemp("exported") / "OUT"
    Calibrator(shop / "SRC", QuantConfig(vision="float"), shop / "IMAGES", quiet=True).run().save(out)
    common = ["--model_path", str(shop / "SRC"), "--device_type", "cpu", "--quiet", "--json"]
    main(["verify", str(out), *common, str(shop / "verify.json"), "--images", str(shop / "IMAGES"), "--tokens", "0"])
    data = ["--data", str(shop / "OCRBench.tsv"), "--max_new_tokens", "2"]
    main(["evaluate", "--quantized", str(out), *data, *common, str(shop / "evaluation.json")])
    for name in ("m4.json", "vendor.json"):
        shutil.copy(shop / "evaluation.json", shop / name)
    return out


def run(command: str) -> int:
    """The exit code of a command line, in this process where it is Python."""
    words = shlex.split(command.replace("--device_type npu", "--device_type cpu"))  # there is no NPU
    if words[:3] == ["python", "-m", "quant"]:
        return main(words[3:])
    if words[0] == CONSOLE:
        return main(words[1:])
    if words[0] == "python":
        sys.argv = words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as end:
            return int(end.code or 0)
        return 0
    assert command.startswith(SHELL), f"{command}: neither run nor listed with a reason"
    return subprocess.run(["bash", "-c", command], stdout=subprocess.DEVNULL).returncode


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_the_commands_of_a_page_run_as_they_stand(page, shop, exported, tmp_path, monkeypatch, capsys):
    for entry in shop.iterdir():
        if page.name == "report.md" or entry.suffix != ".json" or entry.name == "config.json":
            (tmp_path / entry.name).symlink_to(entry)
    if page.name in MADE_BEFORE:
        shutil.copytree(exported, tmp_path / "OUT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    if page.name != "README.md":  # which verifies on all that is held out
        monkeypatch.setattr("quant.verify.verify.HELD_OUT", shop / "IMAGES")
    monkeypatch.delenv("ASCEND_RT_VISIBLE_DEVICES", raising=False)
    for kind, command in commands(page):
        if kind == "python":
            exec(compile(command, str(page), "exec"), {})
        elif not elsewhere(command) and NEEDS_SERVER not in command:
            try:
                code = run(command)
            except SystemExit as end:  # --help and --version
                code = int(end.code or 0)
            # On random weights int8 may well be judged too far from float; that is an answer.
            judged = command.split()[3:4] in (["verify"], ["evaluate"], ["compare"])
            assert code == 0 or judged and code == 1, (command, capsys.readouterr().err)
            written = re.findall(r"--(?:json|save_directory|out|output) (\S+)", command)
            assert all(Path(name).exists() for name in written), command


def test_flags_of_commands_that_are_not_run_are_known():
    seen = 0
    for page in PAGES:
        for kind, command in commands(page):
            words = shlex.split(command)
            if kind == "shell" and words[:3] == ["python", "-m", "quant"]:
                parser = argparse.ArgumentParser(exit_on_error=False)
                importlib.import_module(f"quant.commands.{words[3].replace('-', '_')}").add_arguments(parser)
                parser.parse_args(words[4:])
                seen += 1
    assert seen > 30 and {*COMMANDS} >= {"verify", "serve"}


def test_every_reason_is_needed_and_every_page_has_commands_to_run():
    told = [command for page in PAGES for kind, command in commands(page) if kind == "shell"]
    assert {elsewhere(command) for command in told} - {None} == set(ELSEWHERE)
    ran = {page.name for page in PAGES for kind, c in commands(page) if not elsewhere(c) and NEEDS_SERVER not in c}
    assert {*MADE_BEFORE, "README.md", "quantize.md", "performance.md", "compare.md", "install.md"} <= ran


def test_the_two_readmes_show_the_same():
    """Commands, headings, rows of tables, links to pages, figures: one says all that the other says."""
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))
    assert commands(ROOT / "README.md") == commands(ROOT / "README.zh.md")
    for pattern in (r"(?m)^#+ ", r"(?m)^\|", r"`--\w+"):
        assert len(re.findall(pattern, english)) == len(re.findall(pattern, chinese)), pattern
    links = [
        sorted(re.findall(r"\]\(((?:docs|examples|calibImages|CONTRIBUTING)[^)#]*)", text))
        for text in (english, chinese)
    ]
    assert links[0] == links[1]
    figures = [sorted(re.findall(r"\d+\.\d+", text[text.index("`make accuracy`") :])) for text in (english, chinese)]
    assert figures[0] == figures[1]


def test_blocks_are_found():
    text = "a\n\n    python x \\\n        y\n\nb\n\n```bash\nmake d\n```\n\n```json\n    no\n```\n    from quant\n"
    assert blocks(text) == [("shell", "python x \\\n    y"), ("shell", "make d"), ("python", "from quant")]
