"""The model that config.json describes, without its weights.

config.json is a stranger's: what it describes is held against the weights that are there before anything of it takes
memory.
"""

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..base import transformers_api
from ..base.errors import QuantError, UsageError, one_line
from ..families.family import Family
from ..files.checkpoint import Source
from .experts import unfuse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGE = 1 << 20  # bytes


class _LargeOnMeta(TorchFunctionMode):
    """While it lasts, this thread's torch.empty gives what is LARGE on the meta device. It is what modules make their
    weights with; accelerate moves them away only afterwards, and memory that was theirs for a moment is a hole in the
    heap, which fills up later, a page here and a page there. Buffers are small, or are made with their values.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty:
            tensor = func(*args, **{**kwargs, "device": "meta"})
            if tensor.nbytes >= LARGE:
                return tensor
        return func(*args, **kwargs)


def empty_model(
    checkpoint: Source, family: Family, dtype: torch.dtype, trust_remote_code: bool = False
) -> "PreTrainedModel":
    """The family's transformers class, its parameters of `dtype` on the meta device; buffers are real, since no
    checkpoint holds them.

    Raises UsageError for a transformers that is too old, too new or without that class, QuantError for a config.json
    that it cannot build a model from, or that describes far more than the weights hold, and for a class that is the
    checkpoint's own code, unless that may be run.
    """
    transformers_api.check_version()
    import transformers
    from accelerate import init_empty_weights

    try:
        if family.transformers_config:
            config = transformers.AutoConfig.for_model(**family.transformers_config(checkpoint.config))
        else:
            config = transformers.AutoConfig.from_pretrained(
                checkpoint.dir, local_files_only=True, trust_remote_code=trust_remote_code
            )
        trusted = checkpoint.dir if trust_remote_code else None
        with torch.device("meta"):
            _refuse_absurd(transformers_api.build_model(family.built_as, config, dtype, trusted), checkpoint)
        with _LargeOnMeta(), init_empty_weights(include_buffers=False):
            model = transformers_api.build_model(family.built_as, config, dtype, trusted)
    except (QuantError, UsageError):
        raise
    except Exception as err:  # of any kind: transformers reads an untrusted file
        if not trust_remote_code and transformers_api.asks_for_remote_code(err):
            way_out = "its model is code of its own: read it, then pass --trust_remote_code True"
            raise QuantError(f"{checkpoint.dir}: {way_out}") from None
        raise QuantError(
            f"{checkpoint.dir / 'config.json'}: transformers {transformers.__version__} cannot build the model from it"
            f" ({one_line(err)})"
        ) from None
    unfuse(model)
    if (video := family.processing.video) and video.newline_rows(checkpoint.config):
        transformers_api.end_rows_in_newline(model)
    return model.eval()


def _refuse_absurd(model: nn.Module, checkpoint: Source) -> None:
    """Before memory is taken for it: raises QuantError for a model with far more in it, tables of positions included,
    than the weights.
    """
    asked, held = (
        sum(value.numel() for value in (*model.parameters(), *model.buffers())),
        sum(prod(info.shape) for info in checkpoint.tensors.values()),
    )
    if asked > 2 * held:
        raise QuantError(
            f"{checkpoint.dir / 'config.json'}: describes {asked:.3g} numbers, the weights have {held:.3g}; they are of"
            " different models"
        )
