"""What is measured says what it was measured on, and what is of another model is refused or marked."""

import json
import shutil

import pytest
from exports import WEIGHTS, Exports, edit_tensors

from quant.commands.cli import main
from quant.export.recipe import identities, source_of
from quant.files.fingerprints import model_digest


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def measured(exports):
    """(export, float model, verify's JSON)."""
    out, source = exports("qwen2_vl"), exports.source("qwen2_vl")
    file = exports.root / "verify.json"
    main(
        ["verify", str(out), "--model_path", str(source), "--images", str(exports.images), "--json", str(file)]
        + ["--tokens", "0", "--quiet"]
    )
    return out, source, file


def test_a_copy_is_the_same_model_and_what_is_written_about_it_does_not_count(exports, tmp_path):
    out = exports("qwen2_vl")
    shutil.copytree(out, tmp_path / "out", copy_function=shutil.copyfile)  # other times
    before = model_digest(out)
    assert model_digest(tmp_path / "out") == before
    (tmp_path / "out" / "README.md").write_text("mine")
    (tmp_path / "out" / "quant_run.json").unlink()
    assert model_digest(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["config.json", "quant_model_description.json", "tokenizer_config.json", WEIGHTS])
def test_a_changed_byte_is_another_model(exports, tmp_path, name):
    out = exports("qwen2_vl")
    shutil.copytree(out, tmp_path / "out")
    data = bytearray((tmp_path / "out" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "out" / name).write_bytes(data)
    assert model_digest(tmp_path / "out") != model_digest(out)


def test_an_export_knows_its_float_model(exports):
    out, source = exports("qwen2_vl"), exports.source("qwen2_vl")
    assert source_of(out) == identities(None, source)["float"] == model_digest(source, whole=False)


def test_verify_says_what_it_measured(measured):
    out, source, file = measured
    assert json.loads(file.read_text())["identity"] == identities(out, source)


def test_report_refuses_what_was_measured_on_another_export(measured, tmp_path, capsys):
    out, _, file = measured
    shutil.copytree(out, tmp_path / "broken")

    def break_one(tensors):
        name = next(name for name in tensors if name.endswith("deq_scale"))
        tensors[name] = tensors[name] * 2

    edit_tensors(tmp_path / "broken", break_one)
    words = ["--verify", str(file), "--output", str(tmp_path / "r.html")]
    assert main(["report", str(tmp_path / "broken"), *words]) == 2
    error = capsys.readouterr().err
    assert "was measured on another export" in error and identities(out, None)["export"][:16] in error
    assert not (tmp_path / "r.html").exists()
    assert main(["report", str(out), *words]) == 0
    assert "Not of this export?" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    "identity, mark", [({}, "does not say which export"), ({"float": "0" * 64}, "against another float model")]
)
def test_report_marks_what_is_not_known_to_be_of_this_export(measured, tmp_path, identity, mark):
    out, _, file = measured
    result = json.loads(file.read_text())
    result["identity"] = identity and {**result["identity"], **identity}
    (tmp_path / "v.json").write_text(json.dumps(result))
    words = ["--verify", str(tmp_path / "v.json"), "--output", str(tmp_path / "r.html")]
    assert main(["report", str(out), *words]) == 0
    assert mark in (tmp_path / "r.html").read_text()


def test_verify_and_handoff_know_another_float_model(measured, exports, tmp_path, capsys):
    out, source, _ = measured
    shutil.copytree(source, tmp_path / "other")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"note": "edited"}))
    file, model = tmp_path / "v.json", ["--model_path", str(tmp_path / "other")]
    main(["verify", str(out), *model, "--images", str(exports.images), "--json", str(file), "--tokens", "0", "--quiet"])
    assert any("another float model" in notice for notice in json.loads(file.read_text())["notices"])
    served = ["--server", "vllm-ascend", "--out", str(tmp_path / "handoff")]
    assert main(["handoff", str(out), *served, *model]) == 2
    assert "is another model" in capsys.readouterr().err
    assert main(["handoff", str(out), *served, "--model_path", str(source)]) == 0
    assert model_digest(out) in (tmp_path / "handoff" / "DEPLOY.md").read_text()


def test_compare_marks_dumps_of_different_models(measured, exports, tmp_path, capsys):
    out, source, _ = measured
    shutil.copytree(source, tmp_path / "other")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"note": "edited"}))
    main(["dump", str(tmp_path / "a"), "--model_path", str(source), "--images", str(exports.images), "--quiet"])
    inputs = ["--inputs", str(tmp_path / "a"), "--quiet"]
    main(["dump", str(tmp_path / "b"), "--model_path", str(out), *inputs])
    main(["dump", str(tmp_path / "c"), "--model_path", str(tmp_path / "other"), *inputs])
    capsys.readouterr()
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path / "ab.json")])
    assert "different models" not in capsys.readouterr().out
    wanted = {"a": model_digest(source, whole=False), "a_made_from": None}
    wanted |= {"b": model_digest(out), "b_made_from": model_digest(source, whole=False)}
    assert json.loads((tmp_path / "ab.json").read_text())["identity"] == wanted
    main(["compare", str(tmp_path / "c"), str(tmp_path / "b")])
    assert "different models" in " ".join(capsys.readouterr().out.split())
