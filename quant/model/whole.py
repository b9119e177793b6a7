"""The whole model in memory, for what cannot be done block after block: answers and text, written token by token. On
one device, or spread over the visible cards by accelerate.
"""

from collections.abc import Collection
from typing import Any

import torch

from ..base import transformers_api
from ..base.console import size
from ..base.errors import QuantError
from ..families import family_of
from ..families.family import Family
from ..files.checkpoint import Checkpoint, Source
from .device import compute_dtype, free_memory
from .streamed import StreamedModel

# Of the weights' bytes: with what one step of the model computes from them.
MARGIN = 1.2


def needed_memory(checkpoint: Checkpoint, device: str) -> int:
    """Bytes that the whole float model takes where it computes."""
    itemsize = compute_dtype(checkpoint.dtype, device).itemsize
    return round(MARGIN * checkpoint.nbytes * itemsize / checkpoint.dtype.itemsize)


def room_for(checkpoint: Checkpoint, device: str, more: int = 0, spread: bool = False) -> str | None:
    """Why the whole model is not loaded, with both numbers; None when there is memory for it, or nobody knows.

    more: bytes that are wanted besides. spread: over all visible cards; otherwise on the one that `device` means.
    """
    free = free_memory(device)
    if not free:
        return None
    needed, available = (
        needed_memory(checkpoint, device) + more,
        sum(free.values()) if spread else next(iter(free.values())),
    )
    cards = f" on {len(free)} cards" if spread and len(free) > 1 else ""
    return (
        f"the whole model takes {size(needed)}, {size(available)} are available{cards}" if needed > available else None
    )


def whole_model(
    source: Source,
    device: str,
    trust_remote_code: bool = False,
    *,
    absent: Collection[str] = (),
    cards: dict[int, int] | None = None,
) -> StreamedModel:
    """The model of `source` with every float tensor in its place; generate() on it is greedy, and ends an answer as
    generation_config.json says.

    absent: hub names of linears whose places stay empty. cards: number of a card -> bytes, to spread the blocks over;
    None: all of it on `device`. Raises QuantError as StreamedModel does, and for cards that the model does not fit.
    """
    family = family_of(source.config, source.dir)
    streamed = StreamedModel(source, family, compute_dtype(source.dtype, device), device, trust_remote_code)
    places = _places(streamed, family, cards) if cards else {"": streamed.device}
    for tensor, name in streamed.names.items():
        if tensor.rpartition(".")[0] not in absent:
            streamed.device = next(place for prefix, place in places.items() if f"{name}.".startswith(_dotted(prefix)))
            streamed.set(tensor, source.load(tensor))
    streamed.tie_head()
    if cards:
        from accelerate import dispatch_model

        dispatch_model(streamed.model, {prefix: str(place) for prefix, place in places.items()}, force_hooks=True)
    # generate() hands the head a slice of one position, with strides for which torch would copy the whole head to
    # multiply with it.
    streamed.model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: (args[0].clone(memory_format=torch.contiguous_format),)
    )
    if settings := transformers_api.greedy_generation(source.dir):
        streamed.model.generation_config = settings
    return streamed


def _places(streamed: StreamedModel, family: Family, cards: dict[int, int]) -> dict[str, torch.device]:
    """Prefix of module names -> card, blocks whole. Raises QuantError when the cards do not hold the model."""
    from accelerate import infer_auto_device_map

    streamed.tie_head()  # so that both ends come to one card
    config = streamed.checkpoint.config
    blocks = {type(streamed.block(tower, 0)).__name__ for tower in family.towers if tower.blocks(config)}
    found = infer_auto_device_map(
        streamed.model, max_memory=cards, no_split_module_classes=sorted(blocks), dtype=streamed.dtype
    )
    if outside := [place for place in found.values() if not isinstance(place, int)]:
        raise QuantError(
            f"{streamed.checkpoint.dir}: {len(outside)} parts of the model fit none of the {len(cards)} cards, which"
            f" have {size(sum(cards.values()))} free"
        )
    return {prefix: torch.device(f"{streamed.device.type}:{card}") for prefix, card in found.items()}


def _dotted(prefix: str) -> str:
    return f"{prefix}." if prefix else ""


def generate(model: Any, inputs: dict[str, torch.Tensor], **how) -> torch.Tensor:
    """What generate() puts behind the inputs, [B, ...], on the host: int64 [B, <= max_new_tokens]."""
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.inference_mode():
        written = model.generate(**inputs, **how)
    return written[:, inputs["input_ids"].shape[1] :].cpu()
