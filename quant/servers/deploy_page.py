"""DEPLOY.md: one page for the one who deploys an export, with commands that can be copied.

Memory, copy and check, start, a request with an image, the evaluation against the endpoint, and what to mind. Every
value in it is that of the export and of the place; nothing is left to fill in but the photograph and, where it is not
known, the float checkpoint.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ..files.fingerprints import model_digest
from .rules import SERVERS, Directory
from .service import GIB, Demand, Load

PORTS = {"mindie": 1025, "vllm-ascend": 8000}


@dataclass(frozen=True)
class Place:
    """Where the export is served from. directory: its path on the server; float_model: what it was made from, if
    known.
    """

    server: str
    directory: str
    name: str
    port: int
    npus: tuple[int, ...]
    hardware: str | None = None
    float_model: str | None = None
    max_pixels: int | None = None


def serve_command(place: Place, load: Load) -> list[str]:
    """`vllm serve` with what this export needs. No --dtype: the export's own is the only right one."""
    command = ["vllm", "serve", place.directory, "--quantization", "ascend", "--served-model-name", place.name]
    command += ["--tensor-parallel-size", str(load.world_size), "--max-model-len", str(load.max_sequence)]
    command += ["--max-num-seqs", str(load.concurrency), "--port", str(place.port)]
    command += ["--limit-mm-per-prompt", '{"image": 1}']
    if place.max_pixels:
        command += ["--mm-processor-kwargs", json.dumps({"max_pixels": place.max_pixels})]
    return command


def page(
    export: Directory,
    place: Place,
    load: Load,
    demand: Demand,
    npu_memory: float,
    *,
    merged: bool = False,
    https: bool = False,
    warnings: Sequence[str] = (),
) -> str:
    """DEPLOY.md. npu_memory: GiB; merged: whether MindIE's configuration is whole; warnings: of the check, a line
    each.
    """
    kinds = ", ".join(sorted({export.kind(name) for name in export.int8}))
    vision = "int8" if export.vision_int8 else "float"
    here, there = str(export.dir.resolve()), shlex.quote(place.directory)
    visible = ",".join(map(str, place.npus))
    start = f"export ASCEND_RT_VISIBLE_DEVICES={visible}\n{shlex.join(serve_command(place, load))}"
    copy = f"cp -r {shlex.quote(here)} {there}   # as the server's user, or one of its group\n"
    if place.server == "mindie":
        start = (MERGED if merged else FRAGMENT) + MINDIE_START
    url = f"{'https' if https else 'http'}://127.0.0.1:{place.port}"
    return TEMPLATE.format(
        name=place.name,
        harnesses=harness_commands(place.name, url, load.concurrency, there),
        server=SERVERS[place.server],
        what=(
            f"{export.family.name}, {kinds}, {export.configured_dtype}, {vision} vision tower, {len(export.int8)} int8"
            " linears"
        ),
        identity=model_digest(export.dir),
        copy="" if here == place.directory else copy,
        directory=there,
        memory=_memory(demand, load, npu_memory),
        world_size=load.world_size,
        check=f"python -m quant check {there} --target {place.server} --world_size {load.world_size}",
        start=start,
        url=url,
        float_model=shlex.quote(place.float_model or "FLOAT_CHECKPOINT"),
        pixels=PIXELS.format(max_pixels=place.max_pixels) if place.max_pixels and place.server == "mindie" else "",
        dtype=export.configured_dtype,
        notes="\n".join([NOTES[place.server], *(f"- {warning}" for warning in warnings)]),
    )


def harness_commands(name: str, url: str, concurrency: int, directory: str) -> str:
    """Shell commands of the harnesses people have, against the server at `url`; name: the served model's."""
    quoted, (host, _, port) = shlex.quote(name), url.partition("://")[2].rpartition(":")
    edits = f's/model=""/model="{name}"/; s/host_ip="[^"]*"/host_ip="{host}"/; s/host_port=[0-9]*/host_port={port}/'
    return HARNESSES.format(name=quoted, url=url, concurrency=concurrency, directory=directory, edits=edits)


def _memory(demand: Demand, load: Load, npu_memory: float) -> str:
    prefill = f"one prefill of {load.max_input} tokens, {load.image_tokens} of them an image's"
    rows = [
        ("weights", demand.weights, "headers of the export"),
        ("KV cache", demand.kv_cache, f"{load.concurrency} sequences of {load.max_sequence} tokens"),
        ("activations", demand.activations, prefill),
        ("in all", demand.total, f"of {npu_memory:g} GiB"),
    ]
    return "\n".join(f"| {what} | {size / GIB:.1f} | {why} |" for what, size, why in rows)


FRAGMENT = (
    "# config.json beside this page holds what depends on the model: carry its keys over into the service's own,"
    " conf/config.json\n"
)
MERGED = (
    "cp config.json /usr/local/Ascend/mindie/latest/mindie-service/conf/config.json   # the one that was given, with"
    " the model in it\n"
)
MINDIE_START = """\
chmod 640 /usr/local/Ascend/mindie/latest/mindie-service/conf/config.json
source /usr/local/Ascend/ascend-toolkit/set_env.sh
source /usr/local/Ascend/nnal/atb/set_env.sh
source /usr/local/Ascend/atb-models/set_env.sh
source /usr/local/Ascend/mindie/latest/mindie-llm/set_env.sh
source /usr/local/Ascend/mindie/latest/mindie-service/set_env.sh
cd /usr/local/Ascend/mindie/latest/mindie-service && ./bin/mindieservice_daemon
# at last it says: Daemon start success!"""

PIXELS = """
Images are to be at most {max_pixels} pixels in area: write `"max_pixels": {max_pixels}` into
preprocessor_config.json of the directory on the server, which is where MindIE takes it from. Larger ones would
exceed maxInputTokenLen.
"""

NOTES = {
    "mindie": (
        """\
- npuMemSize is the KV cache of one NPU in GiB. It cannot be -1 here, since the vision tower needs room of its own.
- httpsEnabled is false unless the given config.json says otherwise: keep such a service inside a trusted network.
- If a request is answered with an error about image_url, give the address itself:
  "image_url": "data:image/jpeg;base64,..."."""
    ),
    "vllm-ascend": (
        """\
- Never pass --dtype: the scales were rounded for the export's own, and another gives wrong output without an error.
- The quantization is read from quant_model_description.json; a quantization_config in config.json would hide it."""
    ),
}

HARNESSES = """\
# evalscope (pip install evalscope)
evalscope eval --model {name} --api-url {url}/v1 --api-key EMPTY --eval-type openai_api --datasets ocr_bench \\
  --generation-config '{{"temperature": 0, "max_tokens": 128}}' --eval-batch-size {concurrency}
# VLMEvalKit (pip install ms-vlmeval); its images go to JPEG, and to 100 pixels if smaller
python -m vlmeval --data OCRBench TextVQA_VAL DocVQA_VAL MMMU_DEV_VAL --model {name} --base-url {url}/v1 \\
  --key EMPTY --temperature 0 --max-tokens 128 --api-nproc {concurrency}
# lm-evaluation-harness (pip install 'lm-eval[api]')
lm_eval --model local-chat-completions --tasks mmmu_val --apply_chat_template --gen_kwargs temperature=0 \\
  --model_args model={name},base_url={url}/v1/chat/completions,num_concurrent={concurrency},max_images=1
# AISBench (pip install ais-bench-benchmark 'pyarrow<21'); its data sets below ais_bench/datasets, as its pages say
CHAT=$(python -c 'import ais_bench.benchmark as b; print(b.__path__[0])')/configs/models/vllm_api
CHAT=$CHAT/vllm_api_general_chat.py
sed -i '{edits}' "$CHAT"
ais_bench --models vllm_api_general_chat --datasets textvqa_gen_base64"""

TEMPLATE = """\
# {name} on {server}

{what}. sha256 {identity}: `python -m quant verify` and `evaluate` write it beside what they measured.

## Memory of each NPU (GiB), estimated, tensor parallel over {world_size}

| what | GiB | for |
|---|---|---|
{memory}

## Copy, then check where it will be read

```bash
{copy}chmod 750 {directory} && chmod 640 {directory}/*
{check}
```
{pixels}
## Start

```bash
{start}
```

## Ask

```bash
IMAGE=$(base64 -w0 photo.jpg)
curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d @- <<END
{{"model": "{name}", "max_tokens": 128, "temperature": 0, "messages": [{{"role": "user", "content": [
  {{"type": "image_url", "image_url": {{"url": "data:image/jpeg;base64,$IMAGE"}}}},
  {{"type": "text", "text": "Describe this image in detail."}}]}}]}}
END
```

## Score it against the float model

```bash
python -m quant evaluate --model_path {float_model} --endpoint {url} --served_model {name} --data OCRBench.json
```

## Score it with the harness you have

They fetch their data sets, where these are not on disk. Greedy decoding; the same questions to the float model say
what int8 costs. `python -m quant serve {directory}` answers the same requests before a card is at hand.

```bash
{harnesses}
```

## Mind

- The dtype is {dtype}, in config.json and nowhere else. Do not change it; quantize again for another.
{notes}
- What an error message means, and what to do about it: docs/troubleshooting.md.
"""
