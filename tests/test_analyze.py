"""python -m quant analyze: what it prints, what it writes, and what quantize makes of that."""

import argparse
import json
import re

import pytest
import tiny

from quant.commands.cli import main, share
from quant.export import reader


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    root = tmp_path_factory.mktemp("analyze")
    source, images = tiny.make(root / "source", "llava"), tiny.make_images(root / "images", 2)
    flags = ["--calib_images", str(images), "--images", str(images), "--device_type", "cpu"]
    return source, root, flags


def test_a_bound_is_turned_into_files_that_quantize_takes(analysed, capsys):
    source, root, flags = analysed
    more = ["--save_directory", str(root / "found"), "--max_drop", "0.2%", "--profile", "vllm-ascend"]
    assert main(["analyze", str(source), *flags, *more]) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.partition("\n\n")[2].splitlines()[:-1])) <= 80
    assert "all of them static" in said and "rank correlation of alone and in company" in said
    record = json.loads((root / "found" / "analysis.json").read_text())
    groups, chosen = record["groups"], record["chosen"]
    assert len(groups) == 8 and record["kl"] > 0 and chosen["reached"]
    assert 0 < chosen["measured"] <= 0.002 and chosen["dynamics"] and not chosen["floats"]
    page = (root / "found" / "analysis.html").read_text()
    assert page.count("<svg") == 1 and "down_proj" in page and "http://" not in page and "https://" not in page
    quantize = ["quantize", "--model_path", str(source), "--save_directory", str(root / "out"), *flags[:2]]
    files = [f"@{root / 'found' / name}.txt" for name in ("float", "dynamic")]
    lists = ["--disable_names_only", files[0], "--dynamic_names", files[1], "--profile", "vllm-ascend"]
    assert main([*quantize, *lists, "--calib_text", "none"]) == 0
    words = reader.read(root / "out").words
    assert {name for name, word in words.items() if word == "W8A8_DYNAMIC"} == set(chosen["dynamics"])
    assert set(words) == {name for group in groups for name in group["linears"]}


def test_a_bound_that_nothing_reaches_in_int8_leaves_all_float(analysed, capsys):
    source, _, flags = analysed
    assert main(["analyze", str(source), *flags, "--max_drop", "1e-9"]) == 0
    assert "100.0% of the multiply-adds leave static int8" in capsys.readouterr().out


@pytest.mark.parametrize("word,value", [("0.5%", 0.005), ("0.005", 0.005), ("1e-3", 0.001)])
def test_a_bound_is_a_share(word, value):
    assert share(word) == pytest.approx(value)


@pytest.mark.parametrize("word", ["0", "-1%", "200%", "much", "%", "nan"])
def test_what_is_no_bound_is_refused(word):
    with pytest.raises(argparse.ArgumentTypeError, match="is no share such as 0.5% or 0.005"):
        share(word)


def test_quantize_takes_the_bound_itself(analysed, tmp_path, capsys):
    source, _, flags = analysed
    images, place = flags[1], tmp_path / "out"
    quantize = ["quantize", "--model_path", str(source), "--calib_images", images, "--device_type", "cpu"]
    bound = ["--max_drop", "0.1%", "--max_drop_images", images, "--calib_text", "none"]
    assert main([*quantize, *bound, "--save_directory", str(place)]) == 0
    said = capsys.readouterr().out
    moved, floats, loss = re.search(
        r"bound +([\d.]+)% of the multiply-adds leave static int8:\n"
        r" +\1% to float \((\d+) linears\), 0.0% to W8A8_DYNAMIC \(0\)\n"
        r" +KL ([\d.]+) on samples not chosen by, at most 0\.0010",
        said,
    ).groups()
    words = reader.read(place).words
    linears = 14  # of two blocks
    assert len(words) == linears - int(floats) and set(words.values()) == {"W8A8"}
    assert 0 < float(moved) < 100 and float(loss) <= 0.001


@pytest.mark.parametrize(
    "flags,said",
    [
        (["--disable_names", "*.q_proj"], "--disable_names with --max_drop: the bound chooses"),
        (["--scheme", "W8A8_DYNAMIC"], "--scheme with --max_drop: the bound chooses"),
        (["--dry_run"], "--dry_run with --max_drop: what leaves int8 is measured; use `python -m quant analyze`"),
        (["--max_drop_images", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_go_with_a_bound(analysed, tmp_path, capsys, flags, said):
    source, _, given = analysed
    quantize = ["quantize", "--model_path", str(source), *given[:2], "--save_directory", str(tmp_path / "out")]
    assert main([*quantize, "--max_drop", "1%", *flags]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
