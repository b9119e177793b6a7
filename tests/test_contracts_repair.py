"""--fix: what can be repaired without the float weights is repaired, into a new directory; nothing else is touched."""

import errno
import hashlib
import shutil
from pathlib import Path

import faults
import pytest
from exports import DESCRIPTION, WEIGHTS, Exports, copy, drop, edit_json
from test_contracts import BROKEN, command, found

from quant.base.errors import QuantError, UsageError
from quant.servers.rules import check
from quant.servers.rules.repair import repair


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def state(directory: Path) -> dict:
    """Name -> mode and content of every file."""
    return {
        path.name: (oct(path.stat().st_mode), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.iterdir()
    }


REPAIRABLE = [
    "index of another run",
    "side file not copied",
    "merges.txt not copied",
    "no tokenizer",
    "no image processor",
    "weights for the owner alone",
    "weights for everyone",
    "directory for everyone",
    "description under its old name",
    "no description",
    "description is no JSON",
    "null in the description",
    "no version",
    "no model type",
    "no entry for a linear",
    "no entry for the embedding",
    "unknown type",
    "float described as int8",
    "a part of another type",
    "bias described as int8",
    "entry without a tensor",
    "vision switched off",
    "vision switched on",
    "no quantize",
    "no quantize at all",
    "quantize of another type",
    "quantization_config",
    "no torch_dtype",
    "torch_dtype changed",
    "no vocab_size",
    "config.json of transformers 5",
]


@pytest.mark.parametrize("name", REPAIRABLE)
def test_what_was_broken_is_repaired(exports, tmp_path, name):
    case = BROKEN[name]
    export = copy(exports(case.family, case.dtype, **(case.choices or {})), tmp_path / "out")
    case.change(export)
    source, before = exports.source(case.family, case.dtype), state(export)
    assert check(export, source=source)
    repair(export, tmp_path / "fixed", source)
    assert found(tmp_path / "fixed", source=source) == []
    assert state(export) == before


def test_repaired_description_and_config_are_the_good_ones(exports, tmp_path):
    good = exports("qwen2_vl")
    export = copy(good, tmp_path / "out")
    (export / DESCRIPTION).unlink()
    edit_json(
        export / "config.json",
        lambda x: (x.pop("quantize"), x.update(quantization_config={"a": 1}, torch_dtype="float16")),
    )
    changes = repair(export, tmp_path / "fixed")
    assert any('torch_dtype "float16" -> "bfloat16"' in line for line in changes)
    for name in (DESCRIPTION, "config.json", WEIGHTS):
        wanted, got = (sorted((directory / name).read_bytes().splitlines()) for directory in (good, tmp_path / "fixed"))
        assert [line.rstrip(b",") for line in got] == [line.rstrip(b",") for line in wanted]


def test_what_needs_the_float_weights_is_still_reported(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    drop(export, "model.layers.0.self_attn.q_proj.deq_scale")
    (export / WEIGHTS).chmod(0o400)
    done = command(export, "--fix", tmp_path / "fixed")
    assert done.returncode == 1
    assert "linear-parts" in done.stdout and "modes" not in done.stdout


def test_refusals(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    for target, why in ((export, "overlaps"), (export / "inside", "overlaps"), (tmp_path / "full", "is not empty")):
        with pytest.raises(UsageError, match=why):
            repair(export, target)
    BROKEN["truncated weights"].change(export)
    with pytest.raises(QuantError, match="truncated.*nothing can be repaired"):
        repair(export, tmp_path / "fixed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "out"]


def test_a_disk_that_is_full_at_any_step_leaves_nothing(exports, tmp_path):
    export = copy(exports("qwen2_vl"), tmp_path / "out")
    with faults.counted() as operations:
        repair(export, tmp_path / "whole")
    saved = operations.index("rename")
    assert saved > 10
    harmless = {0, operations.index("link")}  # a parent that is there already; weights that are not linked are copied
    for at in range(saved + 1):
        fixed = tmp_path / f"fixed{at}"
        with faults.counted(at, faults.raising(errno.ENOSPC)):
            if at in harmless:
                repair(export, fixed)
                assert state(fixed) == state(tmp_path / "whole")
                shutil.rmtree(fixed)
            else:
                with pytest.raises(QuantError, match=rf"^{tmp_path}.*: No space left on device$"):
                    repair(export, fixed)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"], operations[at]
