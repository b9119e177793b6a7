"""Every export has a model card that says what is true of it."""

import json
import re
import shlex

import pytest
from exports import Exports

from quant.commands.cli import COMMANDS, main
from quant.export.formats import export


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("card"))


def test_what_it_says_of_how_it_was_made(exports):
    out = exports("qwen2_vl")
    text = (out / "README.md").read_text()
    recipe, run = (json.loads((out / f"quant_{name}.json").read_text()) for name in ("recipe", "run"))
    described = json.loads((out / "quant_model_description.json").read_text())
    int8 = [name for name, kind in described.items() if name.endswith(".weight") and kind == "W8A8"]
    assert f"activations of {len(int8)} linears in 8 bits" in text and "the rest is bfloat16" in text
    assert f"| kept float | {len(recipe['float'])} linears |" in text and "Outlier Suppression+ (m2)" in text
    assert recipe["source_sha256"][:16] in text and recipe["fingerprint"][:16] in text
    blocks = [block for block in run["blocks"] if block["block"].startswith("model.layers.")]
    least = min(blocks, key=lambda block: block["snr_held_out_db"])
    assert f"| {least['snr_held_out_db']:.1f} | {least['block']} |" in text
    assert "MindIE on one NPU only" in text and "attn.proj" in text


@pytest.mark.parametrize(
    "choices, there, absent",
    [
        ({"save_type": "ascendV1", "act": "static"}, "--quantization ascend", "compressed-tensors"),
        ({"save_type": "ascendV1", "act": "dynamic"}, "--quantization ascend", "--server mindie"),
        ({"save_type": "mindie", "act": "static"}, "--server mindie", "vllm serve"),
        ({"save_type": "compressed-tensors", "act": "dynamic"}, "vllm serve OUT ", "--quantization ascend"),
    ],
)
def test_each_format_has_the_commands_that_are_right_for_it(exports, tmp_path, choices, there, absent):
    text = (export(exports("llava", "float16"), tmp_path / "out", **choices) / "README.md").read_text()
    assert there in text and absent not in text and "MindIE on one NPU only" not in text
    assert (tmp_path / "out" / "README.md").stat().st_mode & 0o777 == 0o640


def test_its_commands_are_commands(exports, capsys):
    text = (exports("qwen2_vl") / "README.md").read_text()
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    lines = [shlex.split(line, comments=True) for line in shell.splitlines()]
    ours = [words[3:] for words in lines if words[:3] == ["python", "-m", "quant"]]
    assert (
        {words[0] for words in ours} >= {"verify", "evaluate", "report", "serve", "check", "handoff"} <= set(COMMANDS)
    )
    for words in ours:
        with pytest.raises(SystemExit) as end:  # every flag is known, or argparse would say so before the help
            main([*words, "--help"])
        assert end.value.code == 0, words


def test_an_export_without_records_says_so(exports, tmp_path):
    out = export(exports("qwen2_vl"), tmp_path / "one")
    for name in ("quant_recipe.json", "quant_run.json"):
        (out / name).unlink()
    text = (export(out, tmp_path / "two") / "README.md").read_text()
    assert "Not recorded" in text and "Nothing, while it was made." in text
