"""From the command line: a job, and everything that can be said of what it wrote; bad input, one line each."""

import json
import shutil

import cv2
import numpy as np
import onnx
import pytest
from graphs import classifier, looped

from quant.commands import cli
from quant.onnx.export import read_export

SIDE = 32


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(classifier(SIDE, SIDE), str(file))
    return file


def pictures(folder, count, seed, labels=True):
    """Dark ones and light ones, with what they are."""
    folder.mkdir()
    random, lines = np.random.default_rng(seed), []
    for number in range(count):
        dark = number % 2
        image = random.integers(0, 120, (40, 44, 3), np.uint8) + (0 if dark else 120)
        cv2.imwrite(str(folder / f"{number:02d}.png"), image.astype(np.uint8))
        lines.append(f"{number:02d}.png\t{'180' if dark else '0'}")
    if labels:
        (folder / "labels.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("a") / "calibration", 20, 1)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("b") / "unseen", 24, 2)


@pytest.fixture(scope="module")
def export(source, calibration, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "export"
    flags = ["--save_directory", str(out), "--task", "cls", "--max_drop", "30"]
    assert cli.main(["onnx", "--model_path", str(source), "--calib_images", str(calibration), *flags]) == 0
    return out


def test_a_job_writes_what_it_says(export, source):
    record = read_export(export).record
    assert sorted(file.name for file in export.iterdir()) == ["quant_onnx.json", "small.amct.onnx", "small.int8.onnx"]
    assert record["task"] == "cls" and record["calibration"]["images"] == 8 and record["held_out"]["images"] == 12
    assert record["held_out"]["against"] == "labels" and not set(record["calibration"]["sha256"]) & set(
        record["held_out"]["sha256"]
    )
    assert record["multiply_adds"]["int8"] > 0.95 and [layer["op"] for layer in record["layers"]] == ["Conv"] * 3 + [
        "Gemm"
    ]
    onnx.checker.check_model(str(export / "small.int8.onnx"), full_check=True)
    onnx.checker.check_model(str(export / "small.amct.onnx"), full_check=True)
    assert {file.stat().st_mode & 0o777 for file in export.iterdir()} == {0o640}


def test_the_same_job_writes_the_same_bytes(export, source, calibration, tmp_path):
    flags = ["--save_directory", str(tmp_path / "again"), "--task", "cls", "--max_drop", "30", "--quiet"]
    assert cli.main(["onnx", "--model_path", str(source), "--calib_images", str(calibration), *flags]) == 0
    for name in ("small.int8.onnx", "small.amct.onnx"):
        assert (export / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_without_labels_the_float_model_is_the_label(source, tmp_path, capsys):
    images = pictures(tmp_path / "bare", 12, 3, labels=False)
    flags = ["--save_directory", str(tmp_path / "out"), "--plain", "--input_shape", f"1,3,{SIDE},{SIDE}"]
    assert cli.main(["onnx", "--model_path", str(source), "--calib_images", str(images), *flags]) == 0
    assert read_export(tmp_path / "out").record["held_out"]["against"] == "the float model"
    assert "100.00" in capsys.readouterr().out


def test_evaluate_verify_report(export, source, calibration, unseen, tmp_path, capsys):
    scores, verdict, page = tmp_path / "e.json", tmp_path / "v.json", tmp_path / "page.html"
    both = ["--model_path", str(source)]
    words = ["evaluate", *both, "--quantized", str(export), "--data", str(unseen), "--json", str(scores)]
    assert cli.main([*words, "--max_drop", "40"]) == 0
    told = json.loads(scores.read_text())
    assert told["items"] == 24 and told["interval"][0] <= told["interval"][1]
    assert cli.main(["verify", str(export), *both, "--images", str(unseen), "--json", str(verdict)]) == 0
    rows = json.loads(verdict.read_text())["layers"]
    assert [row["name"] for row in rows] == ["first", "by_channel", "wide", "last"] and all(
        row["db"] > 15 for row in rows
    )
    words = ["report", str(export), "--verify", str(verdict), "--evaluation", str(scores), "--output", str(page)]
    assert cli.main(words) == 0
    text = page.read_text()
    assert (
        "layer 1, int8" in text
        and ">layer<" in text
        and "by_channel" in text
        and "accuracy" in text
        and "<script" not in text
    )
    assert cli.main(["check", str(export)]) == 0
    told = capsys.readouterr().out
    assert "nothing wrong" in told and max(map(len, told.replace(f"{tmp_path}", "").splitlines())) <= 80
    assert cli.main(["evaluate", *both, "--quantized", str(export), "--data", str(calibration)]) == 2
    assert "was used to make" in capsys.readouterr().err


def test_dumps_are_compared(export, source, unseen, tmp_path, capsys):
    one, other = tmp_path / "float", tmp_path / "int8"
    flags = ["--images", str(unseen), "--num_samples", "2"]
    assert cli.main(["dump", str(one), "--model_path", str(source), *flags]) == 0
    assert cli.main(["dump", str(other), "--model_path", str(export), "--inputs", str(one)]) == 0
    assert cli.main(["compare", str(one), str(other), "--tolerance", "0.5"]) == 0
    assert cli.main(["compare", str(one), str(other), "--tolerance", "1e-7"]) == 1
    assert "differs first: first" in capsys.readouterr().out


def broken(export, tmp_path, edit, part="model"):
    """A copy with one thing changed in a model, and its hash put right."""
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    record = json.loads((copy / "quant_onnx.json").read_text())
    file = copy / record[part]["file"]
    made = onnx.load(str(file))
    edit(made)
    onnx.save(made, str(file))
    from quant.onnx.export import digest

    record[part]["sha256"] = digest(file)
    (copy / "quant_onnx.json").write_text(json.dumps(record))
    return copy


def test_verify_finds_a_damaged_weight(export, source, unseen, tmp_path, capsys):
    def edit(made):
        tensors = [tensor for tensor in made.graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
        tensor = next(tensor for tensor in tensors if len(tensor.dims) == 4)
        codes = onnx.numpy_helper.to_array(tensor).copy()
        codes.flat[3] = -codes.flat[3] + 9
        tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))

    copy = broken(export, tmp_path, edit)
    assert cli.main(["verify", str(copy), "--model_path", str(source), "--images", str(unseen)]) == 1
    told = capsys.readouterr().out
    assert "code 3 is" in told and "small.amct.onnx answers otherwise" in told


def test_verify_finds_a_changed_range(export, source, unseen, tmp_path, capsys):
    def edit(made):
        makers = {node.output[0]: node for node in made.graph.node}
        first = next(node for node in made.graph.node if node.name == "first")
        scale = next(it for it in made.graph.initializer if it.name == makers[first.input[0]].input[1])
        scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.1), scale.name))

    copy = broken(export, tmp_path, edit)
    assert cli.main(["verify", str(copy), "--model_path", str(source), "--images", str(unseen)]) == 1
    assert "first: the codes of the input span" in capsys.readouterr().out


def test_verify_finds_a_changed_file(export, source, unseen, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(export, copy)
    with open(copy / "small.int8.onnx", "ab") as stream:
        stream.write(b"\x00")
    assert cli.main(["check", str(copy)]) == 1
    assert "was written; export again" in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["opset", "pairs", "zero-point", "per-channel"])
def test_check_names_the_rule(export, tmp_path, capsys, rule):
    def edit(made):
        tensors = {tensor.name: tensor for tensor in made.graph.initializer}
        makers = {node.output[0]: node for node in made.graph.node}
        first = next(node for node in made.graph.node if node.op_type == "Conv" and node.input[1] in makers)
        back = makers[first.input[0 if rule == "per-channel" else 1]]
        if rule == "opset":
            made.opset_import[0].version = 17
        elif rule == "pairs":
            back.input[1] = next(name for name in tensors if name != back.input[1] and tensors[name].data_type == 1)
        elif rule == "zero-point":
            tensors[back.input[2]].CopyFrom(onnx.numpy_helper.from_array(np.int8(3), back.input[2]))
        else:
            scale = onnx.numpy_helper.to_array(tensors[back.input[1]])
            wide = [np.full(2, scale, np.float32), np.zeros(2, np.int8)]
            for name, value in zip(back.input[1:], wide):
                tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))

    assert cli.main(["check", str(broken(export, tmp_path, edit, "amct"))]) == 1
    assert f"error: {rule}\n" in capsys.readouterr().out


def refused(capsys, tmp_path, code, text, *flags):
    """The command ends with `code`, one line says `text`, and nothing was written."""
    out = tmp_path / "refused"
    assert cli.main(["onnx", "--save_directory", str(out), *map(str, flags)]) == code
    told = capsys.readouterr().err
    assert text in told and told.count("\n") == 1
    assert not out.exists() and not list(tmp_path.glob("*partial*"))


def test_bad_input(source, calibration, tmp_path, capsys):
    model, images = ["--model_path", source], ["--calib_images", calibration]
    (tmp_path / "text.onnx").write_text("no model")
    refused(capsys, tmp_path, 1, "not an ONNX model", "--model_path", tmp_path / "text.onnx", *images)
    refused(capsys, tmp_path, 2, "no such file", "--model_path", tmp_path / "gone.onnx", *images)
    refused(capsys, tmp_path, 2, "--task det: a map", *model, *images, "--task", "det")
    refused(capsys, tmp_path, 2, "four sizes", *model, *images, "--input_shape", "3,32")
    refused(capsys, tmp_path, 2, "[1, 3, 32, 32]", *model, *images, "--input_shape", "1,3,64,64")
    refused(capsys, tmp_path, 2, "--max_drop -1", *model, *images, "--max_drop", "-1")
    refused(capsys, tmp_path, 2, "no such folder", *model, "--calib_images", tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(capsys, tmp_path, 2, "neither images nor a label file", *model, "--calib_images", empty)
    (empty / "labels.txt").write_text("\n\n")
    refused(capsys, tmp_path, 2, "holds no labels", *model, "--calib_images", empty)
    for line, text in (
        ("01.png", "line 1: no label of cls"),
        ("gone.png\t0", "names gone.png"),
        ("../x.png\t0", "outside"),
    ):
        (empty / "labels.txt").write_text(line + "\n")
        refused(capsys, tmp_path, 1, text, *model, "--calib_images", empty)
    few = pictures(tmp_path / "few", 5, 7)
    refused(capsys, tmp_path, 2, "5 images, 8 at least", *model, "--calib_images", few)
    damaged = pictures(tmp_path / "damaged", 10, 7)
    for file in damaged.glob("*.png"):
        file.write_bytes(b"no image")
    refused(capsys, tmp_path, 1, "is no image that OpenCV reads", *model, "--calib_images", damaged)


def test_a_shape_that_calibration_cannot_satisfy(calibration, tmp_path, capsys):
    made = classifier(SIDE, SIDE)
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(made, str(tmp_path / "four.onnx"))
    flags = ["--model_path", tmp_path / "four.onnx", "--calib_images", calibration]
    refused(capsys, tmp_path, 1, "fails on an input of x [1, 3, 32, 32]", *flags)


def test_a_paddle_model_without_paddle(calibration, tmp_path, capsys):
    folder = tmp_path / "paddle"
    folder.mkdir()
    flags = ["--model_path", folder, "--calib_images", calibration]
    refused(capsys, tmp_path, 2, "holds no Paddle model", *flags)
    for name in ("inference.pdmodel", "inference.pdiparams"):
        (folder / name).write_bytes(b"x")
    refused(capsys, tmp_path, 2, "paddle2onnx is not installed", *flags)


def test_nothing_to_quantize(calibration, tmp_path, capsys):
    made = looped()
    del made.graph.node[:]
    made.graph.node.extend(
        [onnx.helper.make_node("GlobalMaxPool", ["x"], ["p"]), onnx.helper.make_node("Flatten", ["p"], ["y"])]
    )
    onnx.save(made, str(tmp_path / "none.onnx"))
    flags = ["--model_path", tmp_path / "none.onnx", "--calib_images", calibration, "--task", "cls"]
    refused(capsys, tmp_path, 2, "nothing can be int8", *flags)
