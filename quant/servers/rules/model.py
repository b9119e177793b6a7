"""Rules on the tensors of the model as a whole: that all are there and no others, of the shapes that config.json makes
them, under names that servers take, and float where servers want them float.
"""

from collections.abc import Iterator
from pathlib import Path

from ...families.family import Tower, match
from ...files import experts
from ...files.safetensors_header import read_entries
from .directory import PARTS, STATIC, Directory, Target
from .finding import NOT_MATCHED, Finding, missing
from .opening import hub_name

BUFFERS = ("inv_freq", "position_ids")  # of old checkpoints; no server minds them


def missing_tensors(directory: Directory, target: Target) -> Iterator[Finding]:
    """What the model of config.json's numbers holds is there: the family says what that is; with the source at hand,
    every name of it.
    """
    wanted = set(directory.expected)
    if target.source:
        wanted |= {hub_name(directory.family, name) for name in _tensor_names(target.source, directory.config)}
    for name in sorted(wanted - set(directory.tensors)):
        if name == f"{directory.head}.weight":  # tied_head reports it
            continue
        effects = {server: what for server, what in missing(directory, name).items() if directory.needs(server, name)}
        yield Finding(name, "is missing", effects, "a weight file is missing or incomplete: copy the export again")


def _tensor_names(checkpoint: Path, config: dict) -> set[str]:
    shapes = {
        name: entry.shape
        for file in sorted(checkpoint.glob("*.safetensors"))
        for name, entry in read_entries(file).items()
        if not name.endswith(BUFFERS)
    }
    fused = experts.pieces(shapes, experts.width(config))
    return shapes.keys() - fused.keys() | {name for linears in fused.values() for name, _ in linears}


def unknown_tensors(directory: Directory, target: Target) -> Iterator[Finding]:
    """No tensor that the model has no place for: gate and up in one, parts of a linear that is not int8. Biases aside,
    which loaders pass over.
    """
    if not directory.shapes:
        return
    known = [name for name in directory.int8 if f"{name}.weight" in directory.shapes]
    int8 = {f"{name}.{part}" for name in known for part in PARTS[directory.kind(name)]}
    found: dict[str, list[str]] = {}
    for name in directory.tensors:
        place = directory.family.block_of(name)
        linear, _, part = name.rpartition(".")
        if part in STATIC and f"{linear}.weight" in directory.shapes and f"{linear}.weight" not in directory.tensors:
            continue  # missing_tensors reports the weight
        if name in directory.shapes or name in int8 or ".module." in name or name.endswith((".bias", *BUFFERS)):
            continue  # norm_names reports the third
        if place and place[1] >= place[0].blocks(directory.config):
            continue  # block_count reports it
        kind = name.split(".", 1)[0] if not place else place[0].name + name[len(place[0].block(place[1])) :]
        found.setdefault(kind, []).append(name)
    for names in found.values():
        yield Finding(
            directory.where(names[0]),
            f"is no tensor of {directory.family.name}, as config.json describes it ({len(names)} such)",
            {"vllm-ascend": f"KeyError, or ValueError: There is no module or parameter named {names[0]!r}"},
            "quantize again; a tensor of another layout, or of another run, is among the weights",
        )


def block_count(directory: Directory, target: Target) -> Iterator[Finding]:
    """No more blocks than config.json counts. (Fewer are missing_tensors' affair.)"""
    spare = directory.family.may_hold(directory.config)
    places = [place for name in directory.tensors if name not in spare and (place := directory.family.block_of(name))]
    for tower in directory.family.towers:
        counted, there = tower.blocks(directory.config), [index for owner, index in places if owner is tower]
        if there and max(there) >= counted:
            yield Finding(
                f"config.json: the {tower.name} tower",
                f"has {counted} blocks, the weights have {max(there) + 1}",
                {
                    "mindie": f"loads the first {counted} without a word: another model",
                    "vllm-ascend": f"ValueError: There is no module or parameter named {tower.block(max(there))!r}, or"
                    " KeyError",
                },
                "take the number over from the source's config.json",
            )


def config_numbers(directory: Directory, target: Target) -> Iterator[Finding]:
    """config.json's numbers make the shapes that the tensors have. MindIE's Python loader goes by the tensors."""
    transposed = {
        f"{name}.weight"
        for name in directory.int8
        if directory.tensors[f"{name}.weight"].shape == directory.shapes.get(f"{name}.weight", ())[::-1]
    }  # linear_shapes reports it
    found: dict[tuple, list[str]] = {}
    for name, shape in directory.shapes.items():
        entry = directory.tensors.get(name)
        if entry is None or entry.shape == shape or name in transposed:
            continue
        place = directory.family.block_of(name)
        tower = place[0] if place else None
        unlike = [pair for pair in zip(shape, entry.shape, strict=False) if pair[0] != pair[1]]
        sizes: tuple = unlike[0] if unlike else (shape, entry.shape)
        found.setdefault((tower and tower.name, *sizes), []).append(name)
    for (tower, wanted, _), names in found.items():
        first = names[0]
        key = _key_of(directory, tower, wanted, first)
        yield Finding(
            directory.where(first),
            f"is {list(directory.tensors[first].shape)}, config.json{key} makes it {list(directory.shapes[first])}"
            + (f" ({len(names)} such tensors)" if len(names) > 1 else ""),
            {
                "vllm-ascend": "AssertionError: Attempted to load weight (torch.Size(...)) into parameter"
                " (torch.Size(...))"
            }
            if target.server == "vllm-ascend"
            else {"mindie": "its Python loader takes it; what the kernels make of it was not established"},
            "take the numbers over from the source's config.json; if they are right, quantize again",
            level="error" if target.server == "vllm-ascend" else "warning",
        )


def _key_of(directory: Directory, tower: str | None, number, tensor: str) -> str:
    """Which key of config.json a dimension comes from, as far as its value tells."""
    config, family = directory.config, directory.family
    if tensor in (family.embedding_tensor, f"{family.head}.weight") and number == family.vocab_size(config):
        return "'s vocab_size"
    place: Tower = family.tower(tower or "language")
    heads, shared = place.heads(config)
    if number == place.mlp(config) and ".mlp." in tensor:
        return f"'s intermediate_size of the {place.name} tower"
    if number == place.width(config) // heads * shared and shared != heads:
        return "'s num_key_value_heads"
    return ""


def tensor_names(directory: Directory, target: Target) -> Iterator[Finding]:
    """The hub's names. vLLM-Ascend takes those that transformers 5 writes, in the weights and in the description."""
    for name, written in list(directory.renamed.items())[:1]:
        there = name in directory.tensors
        yield Finding(
            f"{directory.tensors[name].file.name if there else directory.description_name}: {written}",
            f"is the name in transformers of what the hub calls {name} ({len(directory.renamed)} such)",
            {"mindie": f"AssertionError: weight {name} does not exist" if there else f"KeyError: '{name}'"},
            "quantize a checkpoint with the hub's names; vLLM-Ascend takes these",
        )


def kept_float(directory: Directory, target: Target) -> Iterator[Finding]:
    """The head in float for both servers, and what MindIE loads in float besides: of Qwen3-VL the mergers and
    linear_fc2, whose input is not quantized there. (MindIE-LLM 8b4871a: atb_llm.models.qwen3_vl.modeling_qwen3_vl_vit.)
    """
    float_ = directory.family.must_float | directory.family.mindie_float
    for name in directory.int8:
        pattern = match(float_, name)
        if pattern is None:
            continue
        effects = {"mindie": "takes the codes for float values: wrong output without an error"}
        switched = directory.config.get("vision_config", {}).get("quantize")
        merged = directory.family.vision_int8_refused is None and not switched and name != directory.head
        if merged or name == directory.head:  # built by a switch that says float
            effects["mindie"] = NOT_MATCHED
        if name == directory.head:
            effects["vllm-ascend"] = "NotImplementedError or wrong output: its head is float"
        yield Finding(
            directory.where(f"{name}.weight"),
            f"is int8; {float_[pattern]}",
            effects,
            f"quantize again; without --disable_names {name} stays float",
        )


def norm_names(directory: Directory, target: Target) -> Iterator[Finding]:
    """Norms under their own names. `{norm}.module.weight` and a second `{norm}.weight` are a retired way to write a
    shifted norm.
    """
    for name in directory.tensors:
        if ".module." in name:
            yield Finding(
                directory.where(name),
                "is named as a wrapped module's",
                {
                    "mindie": "switches this layer to the older computation with a shifted norm",
                    "vllm-ascend": f"KeyError: '{name}'",
                },
                "quantize again; a norm is {norm}.weight and, if shifted, {norm}.bias",
            )


def norm_bias(directory: Directory, target: Target) -> Iterator[Finding]:
    """A language norm's bias is only read when a consumer of the norm is int8."""
    tower, int8 = directory.family.tower("language"), set(directory.int8)
    for index in directory.blocks(tower):
        for group in tower.groups_of(directory.config, index):
            bias = f"{tower.block(index)}{group.source}.bias" if group.kind == "norm" else None
            consumers = [tower.block(index) + linear for linear in group.linears]
            if bias in directory.tensors and not any(name in int8 for name in consumers):
                yield Finding(
                    directory.where(bias),
                    f"is the bias of a norm whose consumers {', '.join(group.linears)} are all float",
                    {"mindie": "drops the bias without a word: wrong output"},
                    "quantize again; only a norm before int8 linears may be shifted",
                )
