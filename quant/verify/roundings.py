"""The blocks of a float model, and what each of their int8 linears may become there: rounded as an export has it, or in
W8A8_DYNAMIC with the same folding. Both fold their input and unfold their output, so that any of them can stand in the
model that was not folded, beside linears that stay float.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..arithmetic.schemes import DynamicLinear, QuantizedLinear
from ..export.reader import Export
from ..families.family import Family, Tower
from ..files.checkpoint import Checkpoint
from ..model.device import compute_dtype
from ..model.paused import Key, Passed, Walk, logits_at
from ..model.streamed import StreamedModel
from .folding import check_block
from .linear import Relation
from .measure import RoundedLinear


@dataclass
class Folded:
    """An export's int8 linear that folds and unfolds, so that it stands in the model that was not folded."""

    linear: QuantizedLinear
    relation: Relation

    @property
    def name(self) -> str:
        """The linear's hub name."""
        return self.linear.name

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., I] -> y [..., O] in x's dtype."""
        shift = 0 if self.relation.shift is None else self.relation.shift
        return (self.linear((x.float() - shift) / self.relation.column) / self.relation.row).to(x.dtype)


class Roundings:
    """model: the source, streamed. Raises QuantError as StreamedModel does."""

    def __init__(
        self, checkpoint: Checkpoint, export: Export, family: Family, device: str, trust_remote_code: bool = False
    ):
        self.checkpoint, self.export, self.family = checkpoint, export, family
        dtype = compute_dtype(export.dtype, device)  # as the server of the export, whatever the source is in
        self.model = StreamedModel(checkpoint, family, dtype, device, trust_remote_code)
        self.int8 = set(export.linear_names)

    def load(self, tower: Tower, index: int) -> tuple[dict, dict[str, Folded], dict[str, RoundedLinear]]:
        """Put a block of the source into the model: its tensors by name, and of each of its int8 linears the export's
        rounding and the dynamic one, by hub name.
        """
        names, device = self.model.block_tensors(tower, index), self.model.device
        source = {name: self.checkpoint.load(name).to(device) for name in names}
        exported = {part: self.export.load(part).to(device) for name in names for part in self.export.parts(name)}
        relations = check_block(self.checkpoint.config, tower, index, source, exported, self.int8).relations
        self.model.set_all(source)
        rounded = {
            name: Folded(
                self.export.scheme(name).read(
                    name, exported.__getitem__, self.export.dtype, f"{name}.bias" in exported
                ),
                relation,
            )
            for name, relation in relations.items()
            if name in self.int8
        }
        return source, rounded, {name: self._dynamic(name, relations[name]) for name in rounded}

    def _dynamic(self, name: str, relation: Relation) -> RoundedLinear:
        """The source's linear in W8A8_DYNAMIC."""
        stored, its_bias = self.model.weights(name)
        weight, shift = stored.float(), torch.zeros_like(relation.column)
        bias = None if its_bias is None else its_bias.float()
        if relation.shift is not None:
            shift, moved = relation.shift, weight @ relation.shift
            bias = moved if bias is None else bias + moved
        linear = DynamicLinear.quantize(name, weight * relation.column, bias, None, self.export.dtype)
        return RoundedLinear(linear, relation.column, shift)

    @torch.inference_mode()
    def log_probabilities(
        self, inputs: list[dict[str, Tensor]], positions: list[Tensor], float_: set[str], dynamic: set[str]
    ) -> list[Tensor]:
        """float32 [positions, vocabulary] of every sample, of the model in which all linears are as in the export but
        for those that are named. inputs: the model's keyword arguments per sample; positions: int64, of each.
        """
        passed: dict[str, dict[Key, Passed]] = {}
        for tower in self.family.towers:
            with Walk(self.model, tower, dict(enumerate(inputs)), passed) as walk:
                for index in range(tower.used(self.checkpoint.config)):
                    tensors, static, per_token = self.load(tower, index)
                    if index == 0:
                        walk.enter()
                    members = [
                        per_token[name] if name in dynamic else static[name] for name in static if name not in float_
                    ]
                    with self.model.replaced(members):
                        outputs = {key: call(self.model.block(tower, index)) for key, call in walk.calls.items()}
                    self.model.clear(tensors)
                    walk.advance(outputs)
            passed[tower.name] = walk.passed
        with self.model.outside():
            return [
                logits_at(self.model, number, each, passed, keep)[0].float().log_softmax(-1)
                for number, (each, keep) in enumerate(zip(inputs, positions))
            ]
