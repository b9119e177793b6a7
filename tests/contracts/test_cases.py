"""Every row of cases.py: an export is edited so, and check says of each server what is written there."""

import shutil
from pathlib import Path

import pytest
import tiny
import torch
from cases import CASES, FINE, LLAVA, MINDIE, VLLM, Case
from edits import apply
from exports import WEIGHTS, Exports, copy
from safetensors.torch import load_file, save_file

from quant.base.config import QuantConfig
from quant.calibrate.calibrator import Calibrator
from quant.commands.cli import main
from quant.export import formats
from quant.servers.rules import RULES, SERVERS, VERSIONS, check
from quant.servers.rules.repair import repair

DTYPES = {LLAVA: "float16"}  # MindIE feeds LLaVA's vision tower float16 pixels
ROWS = [
    pytest.param(case, family, server, id=f"{server}: {case.edit} ({family})")
    for case in CASES
    for family in case.families
    for server in SERVERS
]


class Made:
    """made(family, ...) -> (an export made so, its checkpoint), neither to be changed."""

    def __init__(self, root: Path):
        self.root, self.exports = root, Exports(root)

    def __call__(
        self,
        family: str,
        dtype: str | None = None,
        act: str = "static",
        tied: bool = False,
        shards: int = 1,
        layout: str = "ascendV1",
        **choices,
    ):
        dtype = dtype or DTYPES.get(family, "bfloat16")
        if tied:
            return self._tied(family, dtype)
        static = self.exports(family, dtype, layout, **choices)
        if shards > 1:
            return self._sharded(static, shards), self.exports.source(family, dtype)
        if act != "static":
            out = self.root / f"{static.name}-{act}"
            if not out.exists():
                formats.export(static, out, act=act)
            static = out
        return static, self.exports.source(family, dtype)

    def _sharded(self, export: Path, shards: int) -> Path:
        out = self.root / f"{export.name}-{shards}"
        if not out.exists():
            copy(export, out)
            tensors = load_file(out / WEIGHTS)
            (out / WEIGHTS).unlink()
            names = list(tensors)
            for number in range(shards):
                file = out / f"quant_model_weight_w8a8-{number + 1:05d}-of-{shards:05d}.safetensors"
                save_file({name: tensors[name] for name in names[number::shards]}, file)
                file.chmod(0o640)
        return out

    def _tied(self, family: str, dtype: str):
        source = self.root / f"{family}-{dtype}-tied-source"
        out = self.root / f"{family}-{dtype}-tied"
        if not out.exists():
            tiny.make(source, family, dtype=dtype, tied=True)
            config = QuantConfig(anti_method="m2", dev_type="cpu", dtype=dtype)
            Calibrator(source, config, str(self.exports.images)).run(self.root).save(out)
        return out, source


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    return Made(tmp_path_factory.mktemp("contracts"))


def said_of(findings, server: str) -> dict[str, str]:
    """ "level rule" -> the effects that are named, of one server."""
    said: dict[str, str] = {}
    for finding in findings:
        name = f"{finding.level} {finding.rule}"
        said[name] = said.get(name, "") + finding.effects[server] + "\n"
    return said


@pytest.mark.parametrize("case, family, server", ROWS)
def test_check_says_what_the_loader_does(made, tmp_path, case: Case, family: str, server: str):
    original, checkpoint = made(family, **case.made)
    source = tmp_path / "source"
    shutil.copytree(checkpoint, source)
    export = apply(case.steps, copy(original, tmp_path / "out"), source, family)
    said = said_of(check(export, [server], source=source if case.source else None), server)
    wanted = {said.partition(": ")[0]: said.partition(": ")[2] for said in row(case, server)[1:] if said}
    if "warning sampling" not in wanted and family == LLAVA:
        said.pop("warning sampling", None)  # a vocabulary of 512: every export of tiny LLaVA has that
    assert said.keys() == wanted.keys(), said
    for name, effect in wanted.items():
        assert effect in said[name]
        assert RULES[name.split()[1]].level(server), "a rule speaks for a server that it is not of"


def row(case: Case, server: str) -> tuple[str, ...]:
    """What the loader does, and what check must say."""
    return {MINDIE: case.mindie, VLLM: case.vllm}[server]


@pytest.mark.parametrize("act, warned", [("static", True), ("dynamic", False)])
def test_static_compressed_tensors_are_warned_of(made, tmp_path, capsys, act, warned):
    """vllm-ascend leaves their offset uninitialised; other vLLM has none."""
    export, _ = made("qwen2_vl")
    assert main(["export", str(export), str(tmp_path / "out"), "--save_type", "compressed-tensors", "--act", act]) == 0
    assert ("uninitialised" in capsys.readouterr().out) == warned


@pytest.mark.parametrize("server, told", [(MINDIE, "MindIE"), (VLLM, "nothing wrong for vLLM-Ascend")])
def test_each_server_is_told_its_own(made, capsys, server, told):
    """A bfloat16 LLaVA is MindIE's error alone."""
    export, _ = made(LLAVA, "bfloat16")
    assert main(["check", str(export), "--target", server]) == (1 if server == MINDIE else 0)
    assert told in capsys.readouterr().out
    assert main(["check", str(export)]) == 1
    said = capsys.readouterr().out
    assert "1 errors, 1 warnings for MindIE; nothing wrong for vLLM-Ascend" in said
    assert "vision-dtype" in said and "\n  vLLM-Ascend:" not in said, "no effect of its on that server"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "."])
def test_links_and_names_of_models_are_repaired(made, tmp_path, name):
    original, source = made("qwen2_vl")
    steps = (("link", name), ("config", "model_type", "qwen3_omni"))
    export = apply(steps, copy(original, tmp_path / "out"), source, "qwen2_vl")
    assert {"symbolic-links", "model-type"} == {finding.rule for finding in check(export)}
    repair(export, tmp_path / "fixed")
    assert check(tmp_path / "fixed") == []


def test_damage_is_a_finding_or_one_line(made, tmp_path):
    """Whatever shape a tensor has: weights of no, one and three dimensions, in every place."""
    for number, shape in enumerate([(), (4,), (2, 2, 2), (0, 0)]):
        for name in ("model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.deq_scale", "lm_head.weight"):
            out = copy(made("qwen2_vl")[0], tmp_path / f"{number}-{name}")
            tensors = load_file(out / WEIGHTS)
            tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)
            (out / WEIGHTS).unlink()
            save_file(tensors, out / WEIGHTS)
            assert check(out)


def test_the_table_agrees_with_itself():
    """Every edit has families and both servers, no row is there twice; a loader that takes an export is not said to
    refuse it.
    """
    rows = [(case.edit, family) for case in CASES for family in case.families]
    assert len(set(rows)) == len(rows) and all(case.families for case in CASES)
    for case in CASES:
        for server in SERVERS:
            does, *says = row(case, server)
            assert does and set(VERSIONS) == set(SERVERS)
            errors = [said for said in says if said.startswith("error")]
            if (does, *says) == FINE:
                assert not errors


@pytest.mark.parametrize("server", SERVERS)
def test_levels_are_those_of_the_table_of_rules(server):
    """No row names a level that is worse than its rule's."""
    order = ("taste", "warning", "error")
    for case in CASES:
        for said in row(case, server)[1:]:
            if said:
                level, rule = said.partition(": ")[0].split()
                assert order.index(level) <= order.index(RULES[rule].level(server)), (case.edit, said)
