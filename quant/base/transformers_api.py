"""What is used here of transformers that is not its documented interface, or that differs between 4.57 and 5.x.

An upgrade that changes one of these breaks it in this module alone, and the test of the function in
tests/test_transformers_api.py says which. What is documented and the same in all versions (AutoConfig, generate,
get_input_embeddings) is called where it is needed.

transformers is imported inside the functions: it takes seconds, and --help does without. Tokenizers and processors are
in transformers_processors.py.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import QuantError, UsageError, one_line
from .own_code import own_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel

FIRST, BELOW = (4, 57), (6, 0)  # versions whose models this project runs
VENDOR = (4, 46)  # what the vendor's library needs, which runs the models itself; tokenizers and processors do there
TORCH = {4: (2, 2), 5: (2, 6)}  # by transformers' first number: below this it says that there is no torch at all
# What only sampling looks at in generation_config.json. Left set, it is warned of at every greedy answer.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def check_version(models: bool = True) -> None:
    """Raises UsageError when the installed transformers is older or newer than this project knows, when it does not
    take the installed torch, and when one of the two is missing. models: whether they are run here; else VENDOR will
    do, too, beside the vendor's library. Takes milliseconds: none is imported.
    """
    found = {name: _installed(name) for name in ("torch", "transformers")}
    if missing := [name for name, version in found.items() if version is None]:
        raise UsageError(f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}")
    number, torch_number = _number(found["transformers"]), _number(found["torch"])
    first = FIRST if models or _installed("msmodelslim") is None else VENDOR
    if not first <= number < BELOW:
        raise UsageError(
            f"transformers {found['transformers']} is installed; {FIRST[0]}.{FIRST[1]} or a later one below"
            f" {BELOW[0]} is needed: pip install 'transformers>={FIRST[0]}.{FIRST[1]},<{BELOW[0]}'"
        )
    least = TORCH[number[0]]
    if torch_number < least:
        older = "" if torch_number < TORCH[FIRST[0]] else f", or pip install 'transformers>={FIRST[0]}.{FIRST[1]},<5'"
        raise UsageError(
            f"transformers {found['transformers']} takes torch {least[0]}.{least[1]} or later, and {found['torch']} is"
            f" installed: take a later torch (with the torch_npu that belongs to it){older}"
        )


def _installed(package: str) -> str | None:
    """Its version, None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _number(version: str | None) -> tuple[int, int]:
    major, minor = (version or "0.0").split(".")[:2]
    return int(major), int(minor)


def version() -> tuple[int, int]:
    """The first two numbers of the installed transformers' version."""
    return _number(_installed("transformers"))


def named_class(name: str) -> Any:
    """A class that a family names. Raises UsageError when the installed transformers does not have it yet."""
    import transformers

    found = getattr(transformers, name, None)
    if found is None:
        raise UsageError(f"transformers {transformers.__version__} has no {name}: pip install --upgrade transformers")
    return found


# -- models ------------------------------------------------------------------------------------------------------------


def build_model(architecture: str, config, dtype: "torch.dtype", own_code: Path | None = None) -> "PreTrainedModel":
    """The class `architecture` with freshly made parameters, on the device that torch makes tensors on.

    config: transformers' own, of AutoConfig. own_code: the checkpoint, where code that it brings may be run: it has the
    classes that transformers has not. dtype: of the parameters; 4.57 makes those of a part of the model with a
    configuration of its own in the dtype that is written there, so what is put in their place must bring its dtype.
    The documented AutoModel...from_config chooses the class itself. Raises UsageError when there is no such class, and
    whatever transformers does about the config.
    """
    import transformers

    if own_code is not None and not hasattr(transformers, architecture):
        return own_class(architecture, config, own_code)._from_config(config, dtype=dtype)
    return named_class(architecture)._from_config(config, dtype=dtype)


def head_name(model: "PreTrainedModel") -> str:
    """The module name of the language model's head, such as "lm_head"."""
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules(remove_duplicate=False) if module is head)


def tie_head(model: "PreTrainedModel") -> None:
    """Let the head share the embedding's weight as it is now; transformers' own tie_weights does as config.json says,
    not as the checkpoint is.
    """
    model.get_output_embeddings().weight = model.get_input_embeddings().weight


def logits_at(forward: "Callable[[dict], Tensor]", inputs: dict, positions: "Tensor") -> "Tensor":
    """Logits [1, P, vocabulary] at the positions, int64 [P] in ascending order, of inputs of T tokens.

    forward: a model's inputs -> its logits. It is told to compute no others, which saves the head's work; a class that
    does not know the argument (4.57's Qwen2-VL) takes no notice and computes all.
    """
    logits = forward({**inputs, "logits_to_keep": positions})
    return logits if logits.shape[1] == positions.numel() else logits[:, positions]


def greedy_generation(directory: Path) -> "GenerationConfig | None":
    """The settings in generation_config.json, which say among others where an answer ends, but greedy: nothing is
    sampled, and what only sampling looks at is unset. None without that file, for what models do by themselves is
    greedy.

    Raises QuantError when it cannot be used.
    """
    import transformers

    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    try:
        known = vars(transformers.GenerationConfig())
        greedy: dict[str, Any] = {"do_sample": False, **{name: None for name in SAMPLING if name in known}}
        return transformers.GenerationConfig.from_pretrained(str(directory), local_files_only=True, **greedy)
    except Exception as error:  # OSError, ValueError, TypeError and more: transformers reads an untrusted file
        raise QuantError(f"{file}: transformers {transformers.__version__}: {one_line(error)}") from None


@dataclass(frozen=True)
class ExpertLayout:
    """How a module keeps its experts: as gate_up_proj [experts, 2I, H] and down_proj [experts, H, I], or turned, as
    4.57 does for some, [experts, H, 2I] and [experts, I, H].
    """

    experts: int
    turned: bool
    parts: dict[str, tuple[int, int]]
    """gate_proj, up_proj, down_proj -> the shape of that linear's weight."""
    tensor_of = {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}

    def view(self, whole: "Tensor", number: int, part: str) -> "Tensor":
        """Where the weight [O, I] of a linear is in the tensor [experts, ...] that holds it."""
        matrix = whole[number].T if self.turned else whole[number]
        outputs = self.parts[part][0]
        return matrix[outputs:] if part == "up_proj" else matrix[:outputs]


def holds_experts(module) -> bool:
    """Whether it is the module of a block's experts, which has two tensors for all of them."""
    parameters = getattr(module, "_parameters", {})
    return {"gate_up_proj", "down_proj"} <= parameters.keys() and parameters["gate_up_proj"].dim() == 3


def expert_layout(module) -> ExpertLayout:
    """Of such a module."""
    first, second = module.gate_up_proj.shape, module.down_proj.shape
    hidden = module.hidden_dim if hasattr(module, "hidden_dim") else module.hidden_size
    turned = first[2] != hidden if first[1] != first[2] else second[1] != hidden
    inner = (first[2] if turned else first[1]) // 2
    parts = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    return ExpertLayout(first[0], turned, parts)


def routing(module, args: tuple, kwargs: dict) -> "tuple[Tensor, Tensor, Tensor]":
    """What such a module is called with: hidden states [T, H], each token's experts [T, k], and their weights [T, k].
    5.x hands over experts and weights [T, k]; 4.57 the weights of all experts [T, E], and the experts.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    given = dict(zip(names, args)) | kwargs
    hidden = given["hidden_states"]
    hidden = hidden.reshape(-1, hidden.shape[-1])
    if "router_indices" in given:
        index = given["router_indices"]
        return hidden, index, given["routing_weights"].gather(-1, index)
    return hidden, given["top_k_index"], given["top_k_weights"]


def end_rows_in_newline(model: "PreTrainedModel") -> None:
    """Let LLaVA-OneVision's class do with the frames of a video, pooled features [frames, side * side, width], as
    LLaVA-Video does: image_newline ends every row of every frame, and none stands behind the last. (LLaVA-NeXT df17966,
    llava.model.llava_arch: add_token_per_grid, mm_newline_position "grid".)
    """
    import torch

    inner = model.model
    whole: Any = type(inner)

    class EndedRows(whole):
        def apply_pooling(self, features):
            pooled = super().apply_pooling(features)
            side = round(pooled.shape[1] ** 0.5)
            rows = pooled.unflatten(1, (side, side))
            newline = self.image_newline.to(rows).expand(*rows.shape[:2], 1, -1)
            return torch.cat([rows, newline], 2).flatten(1, 2)

        @functools.wraps(whole.get_video_features)  # generate() looks at its parameters
        def get_video_features(self, *args, **kwargs):
            found = super().get_video_features(*args, **kwargs)
            if isinstance(found, torch.Tensor):  # 4.x adds its one afterwards, in the place of the last row's
                return found[:, :-1]
            found.pooler_output = found.pooler_output[:, :-1]
            return found

    inner.__class__ = EndedRows


def asks_for_remote_code(error: BaseException) -> bool:
    """Whether transformers refused to run code that a checkpoint brings."""
    return "trust_remote_code" in str(error)
