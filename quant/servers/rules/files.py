"""Rules on the files of a directory: weights and their index, what the processor needs, modes, names."""

import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from ...families import FAMILIES
from .directory import Directory, Target, read_json_or_none
from .finding import Finding
from .opening import hub_name

READ_BY_SERVICE = ("config.json", "generation_config.json")  # in C++, before the model is loaded
VLLM_INDEX = "model.safetensors.index.json"  # the only index that vLLM looks at
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
DIR_MODE, FILE_MODE = 0o750, 0o640
OPENED = (".safetensors", ".json", ".model", ".py", ".jinja")  # by a server; a README is not
PLAIN = re.compile(r"[A-Za-z0-9_./-]*")
TOKENIZER = "tokenizer_config.json"
SLOW_TOKENIZER = ("vocab.json", "merges.txt")  # which tokenizer.json holds too
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
BOTH = ("mindie", "vllm-ascend")


def weights(directory: Directory, target: Target) -> Iterator[Finding]:
    """There are weight files."""
    if not directory.tensors and not directory.damaged:
        yield Finding(
            "*.safetensors",
            "there is none",
            {
                "mindie": "FileNotFoundError: No local weights found with extension .safetensors",
                "vllm-ascend": "RuntimeError: Cannot find any model weights with",
            },
            "copy the export again",
        )


def damaged(directory: Directory, target: Target) -> Iterator[Finding]:
    """Weight files are whole, the description is JSON."""
    for file, why in directory.damaged:
        effect = "SafetensorError while the header is read" if file.suffix == ".safetensors" else "JSONDecodeError"
        yield Finding(file.name, why, dict.fromkeys(BOTH, effect), "copy the export again")


def duplicate_tensors(directory: Directory, target: Target) -> Iterator[Finding]:
    """No tensor in two files: servers read every *.safetensors of the directory, whatever an index says."""
    for name, later, first in directory.duplicates:
        yield Finding(
            f"{later.name}: {name}",
            f"is also in {first.name}",
            {
                "mindie": f"AssertionError: routing weight key error in process 0: Key (Weight): {name}",
                "vllm-ascend": "loads both, and the one that comes last counts",
            },
            "remove the file of the earlier run; an export belongs in an empty directory",
        )


def weight_index(directory: Directory, target: Target) -> Iterator[Finding]:
    """An index places every tensor where it is. One under the hub's name makes vLLM ignore all files that it does not
    name.
    """
    for file in directory.files:
        if not file.name.endswith(".safetensors.index.json"):
            continue
        index = read_json_or_none(file)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict):
            yield Finding(
                file.name,
                "has no weight_map",
                {"vllm-ascend": "KeyError: 'weight_map'"},
                "remove it: no server needs it",
            )
            continue
        weight_map = {hub_name(directory.family, name): file for name, file in weight_map.items()}
        wrong = [name for name, entry in directory.tensors.items() if weight_map.get(name) != entry.file.name]
        wrong += [name for name in weight_map if name not in directory.tensors]
        if wrong and directory.readable:
            effect = (
                "skips every weight file that the index does not name"
                if file.name == VLLM_INDEX
                else "tools that trust it do not find the tensor"
            )
            yield Finding(
                f"{file.name}: {wrong[0]}",
                f"is placed in {weight_map.get(wrong[0], 'no file')}, and is in"
                f" {directory.tensors[wrong[0]].file.name if wrong[0] in directory.tensors else 'none'} ({len(wrong)}"
                " such tensors)",
                {"vllm-ascend": effect, **({} if file.name == VLLM_INDEX else {"mindie": effect})},
                "remove it, or copy the export again: --fix leaves it out",
            )


def side_files(directory: Directory, target: Target) -> Iterator[Finding]:
    """With the source at hand: every file of it that is no weight was copied. What a server cannot do without has rules
    of its own.
    """
    if target.source is None:
        return
    names = {file.name for file in directory.files}
    for file in source_side_files(target.source):
        if file.name in names:
            continue
        idle = file.suffix not in OPENED or "tokenizer.json" in names and file.name in SLOW_TOKENIZER
        yield Finding(
            file.name,
            f"is in {target.source.name} and was not copied",
            dict.fromkeys(BOTH, "does without" if idle else "does without it, or not as the model's makers meant it"),
            "copy it: --fix does it",
            level="taste" if idle else "warning",
        )


def source_side_files(source: Path) -> list[Path]:
    """What an export takes over from the float checkpoint as it is."""
    return [
        path
        for path in sorted(source.iterdir())
        if path.is_file()
        and path.suffix.lower() not in WEIGHT_SUFFIXES
        and not path.name.endswith(".index.json")
        and not path.name.startswith(".")
        and not path.name.lower().startswith("readme")  # of the float model; an export has its own
    ]


def tokenizer(directory: Directory, target: Target) -> Iterator[Finding]:
    """A vocabulary, and the merges that go with it: vocab.json without merges.txt is half a tokenizer, where there is
    no tokenizer.json, which has both.
    """
    names = {file.name for file in directory.files}
    if not names & set(VOCABULARIES):
        yield Finding(
            "tokenizer.json",
            f"there is neither {', nor '.join(VOCABULARIES)}",
            dict.fromkeys(BOTH, "OSError: Can't load tokenizer"),
            "copy the source's tokenizer files: --fix with --model_path does it",
        )
    elif not names & {"tokenizer.json", "tokenizer.model", "merges.txt"}:
        yield Finding(
            "merges.txt",
            "is missing beside vocab.json, and there is no tokenizer.json",
            dict.fromkeys(BOTH, "TypeError: expected str, bytes or os.PathLike object, not NoneType"),
            "copy the source's merges.txt: --fix with --model_path does it",
        )


def processor(directory: Directory, target: Target) -> Iterator[Finding]:
    """preprocessor_config.json names an image processor; a chat template is there; whatever is called .json is JSON."""
    names = {file.name for file in directory.files}
    configs: list[str] = [name for name in ("preprocessor_config.json", "processor_config.json") if name in names]
    if not configs:
        yield Finding(
            "preprocessor_config.json",
            "is missing",
            dict.fromkeys(BOTH, "OSError: Can't load image processor"),
            "copy it from the source: --fix with --model_path does it",
        )
    yield from _processor_names(directory, configs)
    for file in directory.not_json:
        yield Finding(
            file.name, "is not valid JSON", dict.fromkeys(BOTH, "JSONDecodeError"), "copy it from the source again"
        )
    said = read_json_or_none(directory.dir / TOKENIZER)
    in_tokenizer = isinstance(said, dict) and said.get("chat_template")
    if not in_tokenizer and not any(name.startswith("chat_template") for name in names):
        yield Finding(
            "chat_template.json",
            "there is no chat template, in a file of its own or in tokenizer_config.json",
            {
                "vllm-ascend": "ValueError: a chat template is needed, at every chat request",
                "mindie": "chat requests are answered with an error",
            },
            "copy it from the source, take a newer revision of the model, or give the server one (--chat-template)",
            level="warning",
        )


def _processor_names(directory: Directory, configs: Sequence[str]) -> Iterator[Finding]:
    """The classes that these files name are transformers', and of a model like this one."""
    files = {name: read_json_or_none(directory.dir / name) for name in ("processor_config.json", *configs, TOKENIZER)}
    said = {name: values for name, values in files.items() if isinstance(values, dict)}
    known = directory.family.processing.image_processors
    for name in configs:
        values = said.get(name, {})
        inner = values.get("image_processor")  # where transformers 5 writes it
        kind = (inner if isinstance(inner, dict) else values).get("image_processor_type")
        brought = isinstance(values.get("auto_map"), dict)  # a class of the checkpoint's own code
        if kind is not None and not brought and str(kind).removesuffix("Fast").removesuffix("Pil") not in known:
            yield Finding(
                f"{name}: image_processor_type",
                f"is {kind!r}; {directory.family.name}'s are {', '.join(known)}",
                dict.fromkeys(BOTH, "ValueError: Unrecognized image processor, or images are cut as for another model"),
                "copy the file from the source again",
            )
    classes = {family.processing.processor for family in FAMILIES.values()}
    first = next((name for name, values in said.items() if values.get("processor_class")), None)
    if first and "auto_map" not in said[first] and said[first]["processor_class"] not in classes:
        yield Finding(
            f"{first}: processor_class",
            f"is {said[first]['processor_class']!r}, {directory.family.processing.processor!r} is the family's",
            dict.fromkeys(BOTH, "AttributeError: the tokenizer has no attribute image_processor"),
            "copy the file from the source again",
        )


def symbolic_links(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE's service refuses links where it is given the directory and where it reads JSON, whoever runs it; its
    Python loader, and links to weights, are not concerned.
    """
    for path in (directory.dir, *(directory.dir / name for name in READ_BY_SERVICE)):
        if path.is_symlink():
            yield Finding(
                path.name,
                "is a symbolic link",
                {"mindie": f"Found symlink path: {path}"},
                "put the file or directory itself there: --fix does it",
            )


def modes(directory: Directory, target: Target) -> Iterator[Finding]:
    """0750 and 0640: MindIE refuses wider ones; narrower ones keep out the user that its service runs as."""
    found: dict[tuple[int, str], list[str]] = {}
    for path, wanted in [(directory.dir, DIR_MODE), *((file, FILE_MODE) for file in directory.files)]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != wanted:
            found.setdefault((mode, "directory" if path == directory.dir else "file"), []).append(path.name)
    for (mode, kind), names in sorted(found.items()):
        wanted = DIR_MODE if kind == "directory" else FILE_MODE
        effect = "Check_path failed, PermissionError: the service's user, who is of the group, cannot read it"
        if mode & ~wanted:
            effect = f"Check_path failed, PermissionError: current permission {mode:o} exceeds {wanted:o}"
        yield Finding(
            names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} among them",
            f"mode {mode:04o}, {wanted:04o} is demanded",
            {"mindie": effect},
            f"chmod {wanted:o}: --fix does it",
        )


def path_characters(directory: Directory, target: Target) -> Iterator[Finding]:
    """MindIE takes paths of letters, digits and _ . / - only."""
    effects = {"mindie": "ValueError: The file path should not contain special characters."}
    for file in directory.files:
        if file.suffix in OPENED and not PLAIN.fullmatch(file.name):
            yield Finding(
                repr(file.name),
                "has characters besides A-Z a-z 0-9 _ . -",
                effects,
                "rename it, or leave it out if it is not the model's",
            )
    if not PLAIN.fullmatch(str(directory.dir.resolve())):
        yield Finding(
            str(directory.dir.resolve()),
            "has characters besides A-Z a-z 0-9 _ . / -",
            effects,
            "put it under a plain path on the server",
            level="warning",
        )
