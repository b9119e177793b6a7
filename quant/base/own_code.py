"""The model class that a checkpoint brings as code of its own, made usable with the transformers that is installed.

Such code was written for the transformers of its day: its forward takes no argument that came later and wants pixels in
the dtype of its weights; its generate() builds on what is no longer there. So a subclass stands in its place. The
forward computes as it did; answers are written by transformers' own generate(), with the keys and values that the class
itself answers.
"""

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import QuantError

if TYPE_CHECKING:
    from torch import Tensor

NOT_HANDED_ON = ("past_key_values", "position_ids", "cache_position", "use_cache")


def own_class(architecture: str, config, directory: Path) -> Any:
    """The class of that name in the code of the checkpoint in `directory`; config: transformers' own, of AutoConfig.

    It runs that code. Raises QuantError where config.json's auto_map does not name the class, and whatever transformers
    and the code do.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    places = (getattr(config, "auto_map", None) or {}).values()
    place = next((place for place in places if str(place).rpartition(".")[2] == architecture), None)
    if place is None or "--" in place:
        raise QuantError(f"{directory / 'config.json'}: its auto_map names no {architecture} among the files there")
    return _usable(get_class_from_dynamic_module(place, str(directory), local_files_only=True))


def _usable(own: Any) -> Any:
    from transformers import GenerationMixin

    known = inspect.signature(own.forward).parameters

    @functools.wraps(own.forward)
    def forward(self, *args, **given):
        """As it was, without what it does not know, and with floats in its dtype."""
        taken = {name: value for name, value in given.items() if name in known}
        for name, value in taken.items():
            if getattr(value, "is_floating_point", bool)():
                taken[name] = value.to(self.dtype)
        return own.forward(self, *args, **taken)

    def prepare(self, input_ids: "Tensor", past_key_values=None, attention_mask=None, **kwargs) -> dict[str, Any]:
        """What forward is called with: everything, and behind the first token that token alone. (By the name `kwargs`
        transformers knows that forward's arguments will do.)
        """
        mask = input_ids.new_ones(input_ids.shape) if attention_mask is None else attention_mask
        if not past_key_values:
            others = {name: value for name, value in kwargs.items() if name not in NOT_HANDED_ON}
            return {**others, "input_ids": input_ids, "attention_mask": mask, "use_cache": True}
        return {
            "input_ids": input_ids[:, -1:],
            "attention_mask": mask,
            "position_ids": mask.cumsum(-1)[:, -1:] - 1,
            "past_key_values": past_key_values,
            "use_cache": True,
        }

    def generate(self, *args, **given) -> Any:
        """transformers' own, without a cache of its own making."""
        return GenerationMixin.generate(self, *args, **given, use_cache=False)

    methods = {
        "forward": forward,
        "generate": generate,
        "prepare_inputs_for_generation": prepare,
        "_update_model_kwargs_for_generation": GenerationMixin._update_model_kwargs_for_generation,
        "can_generate": classmethod(lambda cls: True),
        "tie_weights": lambda self, *args, **given: None,
    }
    return type(own.__name__, (own, GenerationMixin), methods)
