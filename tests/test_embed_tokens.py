"""embed-tokens: the file holds the table's numbers, in the order and dtype that its description states, or is not there
at all.
"""

import hashlib
import json

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file

from quant.base.errors import QuantError, UsageError
from quant.commands.cli import main
from quant.export import embed_tokens

TABLE = "model.embed_tokens.weight"
NAMES = {"qwen2_vl": TABLE, "qwen2_5_vl": TABLE, "llava": f"language_model.{TABLE}"}


def written(out):
    """What a deployment that knows OUT.json alone reads."""
    described = json.loads((out.parent / f"{out.name}.json").read_text())
    dtype = getattr(torch, described["dtype"])
    table = torch.frombuffer(bytearray(out.read_bytes()), dtype=dtype).reshape(described["shape"])
    assert hashlib.sha256(out.read_bytes()).hexdigest() == described["sha256"]
    assert out.stat().st_size == described["bytes"]
    return table, described


@pytest.mark.parametrize("family", NAMES)
def test_the_file_is_the_models_own_table(tmp_path, family):
    source = tiny.make(tmp_path / "src", family, shards=3)
    embed_tokens.extract(source, tmp_path / "embed.bin")
    table, described = written(tmp_path / "embed.bin")
    model = transformers.AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    assert described["tensor"] == NAMES[family] and described["dtype"] == "bfloat16"
    assert torch.equal(table, model.get_input_embeddings().weight)


@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("asked", ["float16", "float32", "bfloat16"])
def test_other_dtypes_round_once(tmp_path, stored, asked):
    source = tiny.make(tmp_path / "src", "qwen2_5_vl", dtype=stored, tied=True)
    embed_tokens.extract(source, tmp_path / "embed.bin", getattr(torch, asked))
    table, described = written(tmp_path / "embed.bin")
    original = load_file(source / "model.safetensors")[TABLE]
    assert described["dtype"] == asked and torch.equal(table, original.to(getattr(torch, asked)))
    if asked == "float16":  # as a deployment without torch reads it
        assert np.array_equal(np.fromfile(tmp_path / "embed.bin", "<f2").reshape(576, 256), original.half().numpy())


def test_it_is_read_in_pieces(tmp_path, monkeypatch):
    source = tiny.make(tmp_path / "src", "qwen2_5_vl")
    rows = []
    read = embed_tokens.read_tensor
    monkeypatch.setattr(embed_tokens, "read_tensor", lambda info: rows.append(info.shape[0]) or read(info))
    embed_tokens.extract(source, tmp_path / "whole.bin")
    embed_tokens.extract(source, tmp_path / "pieces.bin", piece=100 * 256 * 2)
    embed_tokens.extract(source, tmp_path / "rows.bin", piece=1)
    assert rows == [576] + [100] * 5 + [76] + [1] * 576
    assert (
        (tmp_path / "whole.bin").read_bytes()
        == (tmp_path / "pieces.bin").read_bytes()
        == (tmp_path / "rows.bin").read_bytes()
    )


def rewrite(source, change):
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, source / "model.safetensors")


DAMAGES = {
    "does not fit": (
        lambda t: t[TABLE][500].fill_(1e6),
        r"embed_tokens\.weight reaches 9.99e\+05, float16 ends at 65504",
    ),
    "NaN": (lambda t: t[TABLE][500].fill_(float("nan")), r"holds NaN or Inf between rows 500 and 500"),
    "missing": (lambda t: t.pop(TABLE), r"tensor model\.embed_tokens\.weight is missing"),
    "a vector": (lambda t: t.update({TABLE: torch.zeros(7)}), r"shape \[7\], a float matrix was expected"),
    "integers": (
        lambda t: t.update({TABLE: torch.zeros(7, 7).to(torch.int8)}),
        r"torch\.int8 .*, a float matrix was expected",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_table_leaves_nothing_behind(tmp_path, damage):
    source, out = tiny.make(tmp_path / "src", "qwen2_5_vl"), tmp_path / "out"
    out.mkdir()
    change, message = DAMAGES[damage]
    rewrite(source, change)
    with pytest.raises(QuantError, match=message):
        embed_tokens.extract(source, out / "embed.bin", torch.float16, piece=512)
    assert not list(out.iterdir())


def test_places_that_are_refused(tmp_path):
    source = tiny.make(tmp_path / "src", "qwen2_5_vl")
    (tmp_path / "taken.bin").write_text("mine")
    (tmp_path / "half.bin.json").write_text("mine")
    for out, message in [
        (tmp_path / "taken.bin", "exists already"),
        (tmp_path / "half.bin", "half.bin.json: exists already"),
        (source / "embed.bin", "lies inside the source"),
        (tmp_path / "none" / "embed.bin", "no such directory"),
    ]:
        with pytest.raises(UsageError, match=message):
            embed_tokens.extract(source, out)
    assert (tmp_path / "taken.bin").read_text() == "mine" and not (tmp_path / "half.bin").exists()
    assert not (source / "embed.bin").exists()


def test_command_tells_shape_and_dtype(tmp_path, capsys):
    source = tiny.make(tmp_path / "src", "llava")
    assert main(["embed-tokens", str(source), str(tmp_path / "embed.bin"), "--dtype", "float16"]) == 0
    printed = capsys.readouterr().out
    assert (
        "512 x 256 (vocabulary x hidden), row-major" in printed and "float16" in printed and "embed.bin.json" in printed
    )
    assert main(["embed-tokens", str(source), str(tmp_path / "embed.bin")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
