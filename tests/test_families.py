"""What is known of an architecture is in its description and nowhere else: a family that only these tests know works
from the script to the servers' rules.
"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from PIL import Image

from quant import Calibrator, QuantConfig
from quant.base.errors import QuantError
from quant.commands import quantize
from quant.commands.cli import main
from quant.families import FAMILIES, family_of, script_of
from quant.families.family import match
from quant.families.qwen2vl import QWEN2_VL
from quant.files.checkpoint import Checkpoint
from quant.inputs.encoder import Encoder
from quant.servers.rules import check

ROOT = Path(__file__).parent.parent
KNOWN = [family for family in FAMILIES.values() if hasattr(transformers, family.built_as)]  # 4.57 has not all
MODELS = re.compile("qwen|llava|ForConditionalGeneration", re.IGNORECASE)


def words_of_code(file: Path):
    """(line, text) of every string and name in a module, docstrings and comments aside."""
    tree, asides = ast.parse(file.read_text()), set()
    for node in ast.walk(tree):
        for first in getattr(node, "body", None) or [] if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                asides.add(first.value)
    for node in ast.walk(tree):
        for value in (
            node.value if isinstance(node, ast.Constant) and node not in asides else None,
            getattr(node, "id", None),
            getattr(node, "attr", None),
            getattr(node, "module", None),
        ):
            if isinstance(value, str):
                yield node.lineno, value


def test_nothing_outside_families_decides_by_the_name_of_a_model():
    scripts = {ROOT / script_of(family) for family in FAMILIES.values()}
    found = [
        f"{file.relative_to(ROOT)}:{line}: {text}"
        for file in sorted((ROOT / "quant").rglob("*.py"))
        if file not in scripts and (ROOT / "quant" / "families") not in file.parents
        for line, text in words_of_code(file)
        if MODELS.search(text)
    ]
    assert found == []


def test_the_search_finds_what_it_should(tmp_path):
    """Else the test above would pass without looking."""
    file = tmp_path / "module.py"
    file.write_text(
        '"""Qwen."""\n# LLaVA\nfrom quant.llava import y\nx = f"{y} QWEN"\nif y == "Qwen2VLForConditionalGeneration":\n'
        '    """of Qwen"""\n    qwen = y.llava\ndef f():\n    """Qwen"""\n'
    )
    assert sorted({line for line, text in words_of_code(file) if MODELS.search(text)}) == [3, 4, 5, 7]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_script_holds_nothing_but_the_call(family):
    lines = (ROOT / script_of(family)).read_text().splitlines()
    assert len(lines) <= 12 and lines[-1].strip() == "sys.exit(script(__file__))"


@pytest.mark.parametrize("family", KNOWN, ids=lambda family: family.name)
def test_a_description_agrees_with_itself(family):
    assert hasattr(transformers, family.built_as) and hasattr(transformers, family.processing.processor)
    assert match(family.must_float, family.head), "no server loads an int8 head"
    assert [tower.name for tower in family.towers] == ["vision", "language"]
    outside = [family.head, family.embedding, family.final_norm]
    assert not any(family.block_of(name) for name in outside)
    assert family.processing.image_token in family.processing.reserved
    assert family.processing.image_token in family.processing.chat_image
    assert all(part in family.processing.chat for part in ("{images}", "{prompt}"))
    linears = {linear for group in family.tower("vision").groups for linear in group.linears}
    assert {*family.vision_int8_whole, *filter(None, [family.mindie_transposed])} <= linears


@pytest.mark.parametrize("name", tiny.known())
def test_a_description_agrees_with_the_model(tmp_path, name):
    """Sizes, names and numbers against what transformers makes of the same config.json."""
    source = tiny.make(tmp_path / "source", name)
    config = json.loads((source / "config.json").read_text())
    family = family_of(config, source)
    tensors = Checkpoint(source).tensors
    assert {f"{part}.weight" for part in (family.head, family.embedding, family.final_norm)} <= tensors.keys()
    for tower in family.towers:
        block = tower.block(0)
        widths = {
            tensors[f"{block}{group.source}.weight"].shape[0]
            for group in tower.groups_of(config, 0)
            if group.kind == "norm"
        }
        assert widths == {tower.width(config)}
        last = [group for group in tower.groups_of(config, 0) if group.observed and group.linears[0].startswith("mlp.")]
        if not last[-1].readers:  # of experts, which have a width of their own
            assert tensors[f"{block}{last[-1].linears[0]}.weight"].shape[1] == tower.mlp(config)
    assert tensors[f"{family.embedding}.weight"].shape[0] == family.vocab_size(config)
    tokenizer = Encoder(source).tokenizer
    assert family.processing.image_token_id(config) == tokenizer.convert_tokens_to_ids(family.processing.image_token)


@pytest.mark.parametrize(
    "family", [each for each in KNOWN if not each.transformers_config], ids=lambda family: family.name
)
def test_what_config_json_leaves_out_is_what_transformers_makes_of_it(family):
    """A key that is missing means the default of transformers' class, or is a fault of one line."""
    made = getattr(transformers, family.built_as).config_class().to_dict()
    made.update(made.get("text_config") or {})
    kinds = {"vision_config": {"model_type": made["vision_config"].get("model_type")}}
    eyes = made["vision_config"]
    for what, ask, wanted in [
        ("image token", family.processing.image_token_id, made.get("image_token_id", made.get("image_token_index"))),
        ("vocabulary", family.vocab_size, made["vocab_size"]),
        ("width", family.tower("language").width, made["hidden_size"]),
        (
            "mlp",
            family.tower("language").mlp,
            made.get("intermediate_size", made.get("shared_expert_intermediate_size")),
        ),
        ("blocks", family.tower("language").blocks, made["num_hidden_layers"]),
        ("vision width", family.tower("vision").width, eyes.get("embed_dim", eyes["hidden_size"])),
        ("vision blocks", family.tower("vision").blocks, eyes.get("depth", eyes.get("num_hidden_layers"))),
        ("patch", family.processing.patch, _side(eyes["patch_size"])),
        ("merge", family.processing.merge, eyes.get("spatial_merge_size", round(1 / made.get("downsample_ratio", 1)))),
    ]:
        try:
            assert ask(kinds) == wanted, what
        except QuantError as error:
            assert "config.json" in str(error) and "fetch it again" in str(error)


def _side(said) -> int:
    return said if isinstance(said, int) else said[0]


def test_two_facts_that_were_wrong():
    """A vision_config without embed_dim has the class's 1280, not hidden_size, which is the language model's width; a
    config.json without vocab_size has its own class's vocabulary, not LLaMA's.
    """
    assert QWEN2_VL.tower("vision").width({"vision_config": {"hidden_size": 3584}}) == 1280
    assert QWEN2_VL.tower("vision").mlp({"vision_config": {"hidden_size": 3584}}) == 5120
    assert QWEN2_VL.vocab_size({"text_config": {}}) == 152064


# ---- a fourth family


@pytest.fixture
def fourth(monkeypatch):
    """A family of another name, another token for images, another exception at the servers."""
    processing = replace(QWEN2_VL.processing, chat_image="<|vision_start|><|image_pad|><|vision_end|>Picture: ")
    family = replace(
        QWEN2_VL,
        name="Fourth-VL",
        architecture="FourthForAll",
        script="fourth",
        processing=processing,
        mindie_310p=True,
        mindie_vision_head=64,
        mindie_transposed="attn.qkv",
        prompt="Was ist das?",
    )
    monkeypatch.setitem(FAMILIES, family.architecture, family)
    built_of = transformers.Qwen2VLForConditionalGeneration
    # By name: transformers puts another module in its own place when it is first asked for a class.
    monkeypatch.setattr("transformers.FourthForAll", built_of, raising=False)
    return family


@pytest.fixture
def source(tmp_path, fourth):
    """A checkpoint of it, without a chat template."""
    source = tiny.make(tmp_path / "source", "qwen2_vl")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": [fourth.architecture]}))
    (source / "chat_template.json").unlink()
    said = json.loads((source / "tokenizer_config.json").read_text())
    said.pop("chat_template", None)
    (source / "tokenizer_config.json").write_text(json.dumps(said))
    return source


def test_a_fourth_family_from_images_to_the_servers_rules(fourth, source, tmp_path, capsys):
    encoder = Encoder(source)
    text = encoder.decode(encoder(Image.new("RGB", (56, 56)), fourth.prompt)["input_ids"][0])
    assert "Picture: Was ist das?" in text
    out = tmp_path / "out"
    done = Calibrator(str(source), QuantConfig(anti_method="m2"), str(tiny.make_images(tmp_path / "images", 2))).run()
    with pytest.raises(QuantError, match="is written, but breaks rules of MindIE: .*vision-shape"):
        done.save(out)  # it is checked where it is saved
    rules = {finding.rule: finding for finding in check(out, ["mindie"], hardware="310p")}
    assert "hardware" not in rules and "80 channels, 64 is what the kernel takes" in rules["vision-shape"].what
    rules = {finding.rule: finding for finding in check(out, ["mindie"], world_size=2)}
    assert "uses attn.qkv of the vision tower transposed" in rules["vision-tensor-parallel"].effects["mindie"]
    assert main(["sizes", str(out), "--image", "56x56"]) == 0
    assert "Fourth-VL" in capsys.readouterr().out


def test_a_fourth_family_needs_one_script(fourth, source, tmp_path, monkeypatch, capsys):
    """Its name in the folder's and the file's name, and the call of all other scripts."""
    argv = [str(tmp_path / script_of(fourth)), "--model_path", str(source), "--dry_run", "--quiet"]
    monkeypatch.setattr(sys, "argv", argv)
    assert quantize.script(argv[0]) == 0
    argv[2] = str(tiny.make(tmp_path / "other", "llava"))
    assert quantize.script(argv[0]) == 2
    said = capsys.readouterr().err
    assert "is a LLaVA-1.5 model, this script is for Fourth-VL; use quant/llava/quant_llava.py" in said


def test_a_class_that_this_transformers_lacks(fourth, source, monkeypatch, capsys):
    monkeypatch.delattr("transformers.FourthForAll")
    assert main(["dump", str(source.parent / "dump"), "--model_path", str(source)]) == 2
    assert "has no FourthForAll: pip install --upgrade transformers" in capsys.readouterr().err


def test_descriptions_need_no_torch():
    code = "import sys, quant.families; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert torch.__version__  # which is there to be imported
