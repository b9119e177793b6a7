"""Handing an export over: what is written can be used as it stands, and what cannot work is refused with the reason."""

import argparse
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import Server
from exports import Exports
from test_contracts import BROKEN, hollow_export
from test_contracts import copy as copied

from quant.commands import evaluate
from quant.commands.cli import main
from quant.servers.rules import open_directory
from quant.servers.service import Load, demand

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))


def handoff(export: Path, out: Path, *flags) -> int:
    return main(["handoff", str(export), "--out", str(out), *map(str, flags)])


def blocks(page: Path) -> dict[str, str]:
    """Heading -> the shell commands below it."""
    sections = (section.partition("\n") for section in page.read_text().split("\n## ")[1:])
    return {title: body.split("```bash\n")[1].split("```")[0] for title, _, body in sections if "```bash" in body}


# -- MindIE


def test_mindie_fragment(exports, tmp_path):
    export = exports("qwen2_vl", vision="float")
    flags = ["--server", "mindie", "--world_size", 2, "--npu_ids", 4, 6, "--name", "qwen", "--max_pixels", 28 * 28 * 12]
    assert (
        handoff(export, tmp_path / "out", *flags, "--text_tokens", 100, "--max_new_tokens", 50, "--concurrency", 3) == 0
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["BackendConfig"]["npuDeviceIds"] == [[4, 6]]
    deploy = config["BackendConfig"]["ModelDeployConfig"]
    assert (deploy["maxInputTokenLen"], deploy["maxSeqLen"]) == (112, 162)
    (model,) = deploy["ModelConfig"]
    assert (model["modelName"], model["modelWeightPath"], model["worldSize"]) == ("qwen", str(export), 2)
    assert model["backendType"] == "atb" and model["trustRemoteCode"] is False and model["npuMemSize"] >= 1
    schedule = config["BackendConfig"]["ScheduleConfig"]
    assert schedule["maxPrefillTokens"] >= deploy["maxInputTokenLen"] and schedule["maxIterTimes"] == 50
    assert schedule["maxPrefillBatchSize"] <= schedule["maxBatchSize"] == 3
    assert '"max_pixels": 9408' in (tmp_path / "out" / "DEPLOY.md").read_text()


def test_mindie_config_is_merged_into_the_one_given(exports, tmp_path):
    given = {
        "Version": "1.0.0",
        "LogConfig": {"logLevel": "Info"},
        "ServerConfig": {
            "ipAddress": "10.0.0.1",
            "port": 1040,
            "httpsEnabled": True,
            "tlsCert": "security/certs/server.pem",
        },
        "BackendConfig": {
            "backendName": "mindieservice_llm_engine",
            "npuDeviceIds": [[0, 1, 2, 3]],
            "ModelDeployConfig": {
                "truncation": False,
                "ModelConfig": [
                    {"modelName": "llama_65b", "worldSize": 4, "npuMemSize": -1, "async_scheduler_wait_time": 120}
                ],
            },
            "ScheduleConfig": {"cacheBlockSize": 128, "maxPrefillTokens": 8192},
        },
    }
    (tmp_path / "given.json").write_text(json.dumps(given))
    flags = ["--server", "mindie", "--config", tmp_path / "given.json", "--name", "qwen"]
    assert handoff(exports("qwen2_vl"), tmp_path / "out", *flags) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["Version"] == "1.0.0" and config["LogConfig"] == {"logLevel": "Info"}
    assert config["ServerConfig"] == given["ServerConfig"]  # its port, its certificates
    model = config["BackendConfig"]["ModelDeployConfig"]["ModelConfig"][0]
    assert (model["modelName"], model["worldSize"], model["async_scheduler_wait_time"]) == ("qwen", 1, 120)
    assert model["npuMemSize"] > 0 and config["BackendConfig"]["npuDeviceIds"] == [[0]]
    assert config["BackendConfig"]["ScheduleConfig"]["cacheBlockSize"] == 128
    assert config["BackendConfig"]["ModelDeployConfig"]["truncation"] is False
    page = (tmp_path / "out" / "DEPLOY.md").read_text()
    assert "https://127.0.0.1:1040" in page and "cp config.json" in page


# -- the page

CURL = """\
#!{python}
import sys, urllib.request
url = next(word for word in sys.argv[1:] if word.startswith("http"))
request = urllib.request.Request(url, sys.stdin.buffer.read(), {{"Content-Type": "application/json"}})
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


@pytest.mark.parametrize("server", ["mindie", "vllm-ascend"])
def test_the_commands_of_the_page_work_as_they_stand(exports, tmp_path, server):
    served = tmp_path / "served" / "model"
    export = exports("qwen2_vl")
    answering = Server()
    try:
        port = int(answering.url.rsplit(":", 1)[1].strip("/v"))
        flags = [
            "--server",
            server,
            "--directory",
            served,
            "--name",
            "qwen",
            "--port",
            port,
            "--model_path",
            "float-model",
        ]
        assert handoff(export, tmp_path / "out", *flags) == 0
        commands = blocks(tmp_path / "out" / "DEPLOY.md")
        # Copy and check: the export arrives with its modes and the check finds nothing.
        served.parent.mkdir()
        script = commands["Copy, then check where it will be read"].replace("python -m", f"{sys.executable} -m")
        done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0 and "nothing wrong" in done.stdout, done.stderr
        # Ask: valid JSON that holds the picture.
        (tmp_path / "curl").write_text(CURL.format(python=sys.executable))
        (tmp_path / "curl").chmod(0o755)
        (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8 picture")
        done = subprocess.run(
            ["bash", "-euc", commands["Ask"]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        ((path, request),) = answering.requests
        assert path.endswith("/v1/chat/completions") and request["model"] == "qwen"
        image, text = request["messages"][0]["content"]
        assert image["image_url"]["url"] == "data:image/jpeg;base64,/9ggcGljdHVyZQ==" and text["type"] == "text"
    finally:
        answering.close()
    # Harnesses: shell that parses, each told where the server is and what the model is called.
    harnesses = commands["Score it with the harness you have"]
    assert subprocess.run(["bash", "-n", "-c", harnesses]).returncode == 0
    called = [shlex.split(line) for line in harnesses.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    assert [words[0] for words in called] == [
        "evalscope",
        "python",
        "lm_eval",
        *(words[0] for words in called[3:5]),
        "sed",
        "ais_bench",
    ]
    for words in called[:3]:
        assert any(f":{port}/v1" in word for word in words) and any("qwen" in word for word in words)
    edited = subprocess.run(
        ["sed", called[5][2]],
        input='model="",\nhost_ip="localhost",\nhost_port=8080,\n',
        capture_output=True,
        text=True,
    ).stdout
    assert edited == f'model="qwen",\nhost_ip="127.0.0.1",\nhost_port={port},\n'
    # Score: flags that evaluate has.
    words = shlex.split(commands["Score it against the float model"])
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert words[:4] == ["python", "-m", "quant", "evaluate"]
    assert parser.parse_args(words[4:]).model_path == "float-model"


def test_vllm_serve_command(exports, tmp_path):
    flags = ["--server", "vllm-ascend", "--world_size", 2, "--npu_ids", 0, 3, "--name", "qwen", "--max_pixels", 9408]
    assert handoff(exports("qwen2_vl"), tmp_path / "out", *flags) == 0
    start = blocks(tmp_path / "out" / "DEPLOY.md")["Start"].splitlines()
    assert start[0] == "export ASCEND_RT_VISIBLE_DEVICES=0,3"
    words = shlex.split(start[1])
    assert words[:2] == ["vllm", "serve"] and "--dtype" not in words
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert flags["--quantization"] == "ascend" and flags["--tensor-parallel-size"] == "2"
    assert json.loads(flags["--mm-processor-kwargs"]) == {"max_pixels": 9408}
    assert not (tmp_path / "out" / "config.json").exists()


# -- memory


def test_memory_of_the_published_7b(tmp_path):
    """Against sums made by hand from its published sizes."""
    export = open_directory(hollow_export(tmp_path, "qwen2vl-7b"))
    load = Load(world_size=1, image_tokens=16384, patches=65536, max_input=16896, max_new=512, concurrency=4)
    one = demand(export, load)
    # 28 layers, 4 KV heads of 128 channels, bfloat16.
    assert one.kv_cache == 2 * 2 * 28 * 4 * 128 * 4 * (16896 + 512)
    assert one.kv_gib == 4
    # A byte a weight: q, o; k, v; gate, up. Two: down. 28 times, then embedding and head.
    language = 28 * (2 * 3584**2 + 2 * 512 * 3584 + 2 * 18944 * 3584 + 2 * 18944 * 3584) + 2 * 2 * 152064 * 3584
    # A byte: qkv, proj, fc1. Two: fc2. 32 times, then the merger and the patch embedding.
    vision = 32 * (4 * 1280**2 + 5120 * 1280 + 2 * 5120 * 1280) + 2 * (5120**2 + 5120 * 3584 + 1280 * 1176)
    assert one.weights == pytest.approx(language + vision, rel=0.005)  # scales, biases and norms are not counted here
    four = demand(export, Load(4, 16384, 65536, 16896, 512, 4))
    assert four.kv_cache == one.kv_cache // 4
    assert four.weights == pytest.approx(language / 4 + vision, rel=0.005)
    # More NPUs than KV heads: each still keeps one.
    assert demand(export, Load(8, 16384, 65536, 16896, 512, 4)).kv_cache == four.kv_cache


def test_what_does_not_fit_is_refused_with_its_figures(exports, tmp_path, capsys):
    assert handoff(exports("qwen2_vl"), tmp_path / "out", "--server", "mindie", "--concurrency", 10**7) == 1
    error = capsys.readouterr().err
    assert re.search(
        r"each NPU would need [\d.]+ GiB \(.*10000000 sequences of 1040 tokens.*51\.2 of its 64 GiB", error
    )
    assert handoff(exports("qwen2_vl"), tmp_path / "out", "--server", "vllm-ascend", "--npu_memory", 0.001) == 1
    assert "--concurrency" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- refusals


@pytest.mark.parametrize(
    "family, dtype, flags, message",
    [
        (
            "qwen2_vl",
            "bfloat16",
            ["--server", "mindie", "--world_size", 2],
            "attn.proj of the vision tower transposed.*--vision float",
        ),
        (
            "qwen2_vl",
            "float16",
            ["--server", "mindie", "--hardware", "310p"],
            "not among the models that MindIE runs on the Atlas 300I Duo",
        ),
        (
            "llava",
            "float16",
            ["--server", "mindie", "--hardware", "310p", "--world_size", 2],
            "several chips of the Atlas 300I Duo",
        ),
        ("llava", "bfloat16", ["--server", "mindie"], "float16 pixels.*--dtype float16"),
        ("qwen2_vl", "bfloat16", ["--server", "vllm-ascend", "--hardware", "310p"], "I64 is what the Atlas 300I Duo"),
        (
            "qwen2_vl",
            "bfloat16",
            ["--server", "vllm-ascend", "--world_size", 8],
            "must be divisible by tensor parallel size",
        ),
    ],
)
def test_combinations_that_cannot_work(exports, tmp_path, capsys, family, dtype, flags, message):
    assert handoff(exports(family, dtype), tmp_path / "out", *flags) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_broken_exports_are_refused(exports, tmp_path, capsys):
    export = copied(exports("qwen2_vl"), tmp_path / "export")
    BROKEN["quantization_config"].change(export)
    assert handoff(export, tmp_path / "mindie", "--server", "mindie") == 0  # which does not mind
    assert handoff(export, tmp_path / "out", "--server", "vllm-ascend") == 1
    assert "hides the description" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--server", "vllm-ascend", "--config", "x.json"], "--config is MindIE's"),
        (["--server", "mindie", "--npu_ids", "1", "1"], "1 different ones are needed"),
        (["--server", "mindie", "--concurrency", "0"], "--concurrency 0: at least 1"),
        (["--server", "mindie", "--directory", "/data/my model"], "--directory /data/my model"),
        (["--server", "mindie", "--name", "a b"], "--name a b"),
        (["--server", "mindie", "--config", "{given}"], "BackendConfig is not an object"),
    ],
)
def test_usage_is_refused_in_one_line(exports, tmp_path, capsys, flags, message):
    (tmp_path / "given.json").write_text('{"BackendConfig": 3}')
    flags = [flag.format(given=tmp_path / "given.json") for flag in flags]
    assert handoff(exports("qwen2_vl"), tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_the_export_or_over_a_file(exports, tmp_path, capsys):
    export = exports("qwen2_vl")
    before = sorted(path.name for path in export.iterdir())
    for out in (export, export / "handoff"):
        assert handoff(export, out, "--server", "mindie") == 2
    assert sorted(path.name for path in export.iterdir()) == before
    (tmp_path / "DEPLOY.md").write_text("mine")
    assert handoff(export, tmp_path, "--server", "mindie") == 2
    assert (tmp_path / "DEPLOY.md").read_text() == "mine" and not (tmp_path / "config.json").exists()
    assert "exists already" in capsys.readouterr().err
