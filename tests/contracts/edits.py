"""The verbs of cases.py: what is done to a copy of an export.

Names of tensors are patterns. LAYERS, EMBEDDING and HEAD in them, TEXT in keys of config.json, DESCRIPTION, WEIGHTS and
PROCESSOR stand for what the family calls them; a value that is a dict with families as keys is that of the family.
"""

import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from cases import LAYERS, LLAVA
from exports import DESCRIPTION, WEIGHTS, edit_json
from safetensors.torch import load_file, save_file


def apply(steps, export: Path, source: Path, family: str) -> Path:
    """Do the steps; returns where the export is then. source: a copy of the checkpoint, which steps may edit too."""
    prefix = "language_model." if family == LLAVA else ""
    words = {
        "LAYERS": LAYERS[family],
        "EMBEDDING": f"{prefix}model.embed_tokens",
        "HEAD": f"{prefix}lm_head",
        "TEXT.": "text_config." if family == LLAVA else "",
        "DESCRIPTION": DESCRIPTION,
        "WEIGHTS": WEIGHTS,
        "PROCESSOR": "CLIPImageProcessor" if family == LLAVA else "Qwen2VLImageProcessor",
    }

    def named(argument):
        if isinstance(argument, dict) and family in argument:
            return argument[family]
        if isinstance(argument, str):
            for word, name in words.items():
                argument = argument.replace(word, name)
        return argument

    for verb, *arguments in steps:
        place = source if verb.startswith("source ") else export
        done = VERBS[verb.removeprefix("source ")](place, *map(named, arguments))
        export = done or export
    return export


def _tensors(export: Path, change) -> None:
    for file in export.glob("*.safetensors"):
        tensors, mode = load_file(file), file.stat().st_mode & 0o777
        change(tensors)
        file.unlink()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        file.chmod(mode)


def _matching(names, patterns) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def drop(export: Path, *patterns: str) -> None:
    """Tensors and their entries."""
    dropped = []

    def change(tensors: dict) -> None:
        dropped.extend(_matching(tensors, patterns))
        for name in _matching(tensors, patterns):
            del tensors[name]

    _tensors(export, change)
    assert dropped, f"no tensor is called {patterns}"
    drop_entries(export, *patterns)


def drop_entries(export: Path, *patterns: str) -> None:
    """Entries of the description alone."""

    def change(entries: dict) -> None:
        dropped = _matching(entries, patterns)
        assert dropped, f"no entry is called {patterns}"
        for name in dropped:
            del entries[name]

    edit_json(export / DESCRIPTION, change)


def entry(export: Path, name: str, kind: str) -> None:
    edit_json(export / DESCRIPTION, lambda entries: entries.update({name: kind}))


def fuse(export: Path, block: str, parts: tuple[str, ...], into: str) -> None:
    """Linears of each block into one: every tensor of theirs is joined along its rows, those of one number are kept."""

    def change(tensors: dict) -> None:
        for name in _matching(tensors, [f"{block}.{parts[0]}.*"]):
            tail = name.rpartition(".")[2]
            stem = name.removesuffix(f".{parts[0]}.{tail}")
            joined = [tensors.pop(f"{stem}.{part}.{tail}") for part in parts]
            tensors[f"{stem}.{into}.{tail}"] = joined[0] if joined[0].numel() == 1 else torch.cat(joined)

    def describe(entries: dict) -> None:
        for name in _matching(entries, [f"{block}.{part}.*" for part in parts]):
            stem, _, tail = name.rpartition(".")
            entries[f"{stem.rpartition('.')[0]}.{into}.{tail}"] = entries.pop(name)

    _tensors(export, change)
    edit_json(export / DESCRIPTION, describe)


def rename(export: Path, before: str, after: str) -> None:
    """Tensors and their entries that begin so."""

    def change(named: dict) -> None:
        for name in [name for name in named if name.startswith(before)]:
            named[f"NEW{after}{name.removeprefix(before)}"] = named.pop(name)
        for name in [name for name in named if name.startswith("NEW")]:
            named[name.removeprefix("NEW")] = named.pop(name)

    _tensors(export, change)
    edit_json(export / DESCRIPTION, change)


def cast(export: Path, pattern: str, dtype: str) -> None:
    def change(tensors: dict) -> None:
        names = _matching(tensors, [pattern])
        tensors.update({name: tensors[name].to(getattr(torch, dtype)) for name in names})

    _tensors(export, change)


def flatten(export: Path, pattern: str) -> None:
    _tensors(export, lambda tensors: tensors.update({n: tensors[n].flatten() for n in _matching(tensors, [pattern])}))


def transpose(export: Path, pattern: str) -> None:
    _tensors(export, lambda tensors: tensors.update({n: tensors[n].t() for n in _matching(tensors, [pattern])}))


def copy_tensor(export: Path, before: str, after: str) -> None:
    _tensors(export, lambda tensors: tensors.update({after: tensors[before].clone()}))


def _place(values: dict, key: str) -> tuple[dict, str]:
    *sections, last = key.split(".")
    for section in sections:
        values = values[section]
    return values, last


def set_key(export: Path, file: str, key: str, value) -> None:
    def change(values: dict) -> None:
        section, last = _place(values, key)
        section[last] = value

    edit_json(export / file, change)


def remove_key(export: Path, file: str, key: str) -> None:
    def change(values: dict) -> None:
        section, last = _place(values, key)
        section.pop(last, None)

    edit_json(export / file, change)


def rename_key(export: Path, before: str, after: str) -> None:
    edit_json(export / "config.json", lambda values: values.update({after: values.pop(before)}))


def link(export: Path, name: str) -> Path | None:
    """The file, or with "." the directory, is moved away and linked to."""
    place = export if name == "." else export / name
    real = export.parent / f"real-{place.name}"
    shutil.move(place, real)
    place.symlink_to(real)
    return place if name == "." else None


VERBS = {
    "drop": drop,
    "drop entries": drop_entries,
    "entry": entry,
    "fuse": fuse,
    "rename": rename,
    "cast": cast,
    "flatten": flatten,
    "transpose": transpose,
    "copy": copy_tensor,
    "config": lambda export, key, value: set_key(export, "config.json", key, value),
    "config remove": lambda export, key: remove_key(export, "config.json", key),
    "json": set_key,
    "json remove": remove_key,
    "rename key": rename_key,
    "remove": lambda export, name: (export / name).unlink(),
    "rename file": lambda export, before, after: ((export / before).rename(export / after), None)[1],
    "link": link,
}
