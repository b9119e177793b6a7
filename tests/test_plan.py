"""The plan of a run: what every linear becomes, and why."""

from dataclasses import replace

import pytest
import tiny

from quant import QuantConfig
from quant.calibrate.summary import decisions_table
from quant.export.plan import make_plan
from quant.families.llava import LLAVA
from quant.families.qwen2vl import QWEN2_VL
from quant.files.checkpoint import Checkpoint


def without(family, tower_name, linear):
    """The family with the group of `linear` left out of its description."""
    towers = [
        replace(tower, groups=tuple(group for group in tower.groups if linear not in group.linears))
        if tower.name == tower_name
        else tower
        for tower in family.towers
    ]
    return replace(family, towers=tuple(towers))


@pytest.mark.parametrize("name,linear", [("qwen2_vl", "self_attn.o_proj"), ("llava", "mlp.gate_proj")])
def test_a_linear_that_no_group_lists_is_said_to_be_one(tmp_path, name, linear):
    family, tower = {"qwen2_vl": QWEN2_VL, "llava": LLAVA}[name], "language"
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", name))
    plan = make_plan(checkpoint, without(family, tower, linear), QuantConfig(anti_method="none"))
    decision = plan.decisions[family.tower(tower).block(1) + linear]
    assert not decision.int8
    assert decision.why == "in a block, but in no group of the family's description"
    table = decisions_table(plan)
    start = table.index(f"{family.tower(tower).prefix}*")
    row = next(line for line in table[start:] if line.startswith(f"  {linear} "))
    note = row.split()[-1]
    assert f"{note} in a block, but in no group of the family's description" in table


def test_a_linear_outside_the_blocks_is_said_to_be_outside(tmp_path):
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen2_vl"))
    family = replace(QWEN2_VL, must_float={"lm_head": "servers load the head in float"})
    plan = make_plan(checkpoint, family, QuantConfig(anti_method="none"))
    assert plan.decisions["visual.merger.mlp.0"].why == "outside the blocks"


def test_a_block_that_config_does_not_count_is_said_to_be_one(tmp_path):
    checkpoint = Checkpoint(tiny.make(tmp_path / "src", "qwen2_vl"))
    checkpoint.config["num_hidden_layers"] = 1
    plan = make_plan(checkpoint, QWEN2_VL, QuantConfig(anti_method="none"))
    why = plan.decisions["model.layers.1.self_attn.q_proj"].why
    assert why == "in a block beyond the 1 that config.json counts"
