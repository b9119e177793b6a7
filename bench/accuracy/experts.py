"""Whether the norm in front of a router and its experts is to be smoothed, on a real language model's activations.

    .venv-accuracy/bin/python bench/accuracy/accuracy.py --shape qwen2vl --methods none --calibrations two
    .venv-accuracy/bin/python bench/accuracy/experts.py out/accuracy/qwen2vl out/accuracy/packages

The first line makes SmolLM2 in the shape of Qwen2-VL, and downloads text. The neurons of its MLPs are dealt out to
EXPERTS experts, those with like gate rows to one, and a router is fitted that sends a token to the TOP experts which
answer it loudest. Each such layer gets what the float model's norm gives its MLP, and is quantized as in an export:
experts W8A8_DYNAMIC, the router float and exact, scales powers of two. Printed is the signal-to-noise ratio of what it
answers to text that nothing was fitted to, dB. Errors of earlier layers are not in it. "w - 1" is the same where the
norm stores w - 1 in bfloat16, as Qwen3.5's does: what rounding it leaves of the scale the router takes up, and is
rounded itself.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import normalize, silu  # noqa: E402

from bench.accuracy.passages import KINDS, passages  # noqa: E402
from quant.arithmetic.fold import FoldedNorm, power_of_two  # noqa: E402
from quant.arithmetic.int8 import signal_to_noise  # noqa: E402
from quant.arithmetic.prior import Prior, doubt  # noqa: E402
from quant.arithmetic.schemes import DynamicLinear  # noqa: E402
from quant.arithmetic.smoothing import Problem, some_outputs  # noqa: E402
from quant.arithmetic.stats import ROWS, Observer, Stats  # noqa: E402
from quant.base.choices import METHODS  # noqa: E402
from quant.verify import runtime  # noqa: E402

EXPERTS, TOP = 8, 2
EVERY = 3  # of the model's blocks every third is looked at


class Layer:
    """A router and experts. weights: gate, up [I, H], down [H, I]; x: what the router is fitted to, [T, H]."""

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, x: Tensor, seed: int):
        parts = dealt(gate, seed)
        self.experts = [(gate[part], up[part], down[:, part]) for part in parts]
        loudness = torch.stack([(silu(x @ g.T) * (x @ u.T) @ d.T).norm(dim=1) for g, u, d in self.experts], 1)
        self.router = fitted(x, loudness).bfloat16().float()

    def __call__(self, x: Tensor, experts: list | None = None, scale: Tensor | float = 1.0) -> Tensor:
        """x [T, H], what the norm answers -> [T, H]; experts: in the place of its own, functions that read x / scale,
        as does the router, in bfloat16.
        """
        router = (self.router * scale).bfloat16().float()
        most, chosen = (x / scale @ router.T).topk(TOP, dim=1)
        shares, answer = most.softmax(1), torch.zeros_like(x)
        for number, (gate, up, down) in enumerate(experts or self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if experts:
                seen = x[rows] / scale
                said = down(silu(gate(seen)) * up(seen))
            else:
                said = silu(x[rows] @ gate.T) * (x[rows] @ up.T) @ down.T
            answer.index_add_(0, rows, shares[rows, place, None] * said)
        return answer

    def quantized(self, scale: Tensor) -> list:
        """Its experts in int8, with the columns of gate and up times scale [H]."""
        return [
            tuple(
                DynamicLinear.quantize(name, weight, None, None, torch.float32)
                for name, weight in (("gate", gate * scale), ("up", up * scale), ("down", down))
            )
            for gate, up, down in self.experts
        ]

    def smoothing(self, method: str, stats: Stats, prior: Prior) -> Tensor | None:
        """The scale [H] that a method answers, None where it leaves the group; as calibrate/block.py asks for it."""
        readers = [weight for gate, up, _ in self.experts for weight in (gate, up)]
        problem = Problem(
            stats=stats,
            weight=torch.cat([each[some_outputs(len(each), each.device, len(readers))] for each in readers]),
            column_max=torch.stack([each.abs().amax(0) for each in readers]).amax(0),
            share=lambda x: x,
            may_shift=False,
            act_method=1,
            scheme=DynamicLinear,
            prior=prior,
        )
        found = METHODS[method].load()(problem, None).scale
        return None if found is None else power_of_two(found)


def dealt(gate: Tensor, seed: int) -> Tensor:
    """The rows of gate [I, H] in EXPERTS equal parts of like ones: int64 [EXPERTS, I / EXPERTS]."""
    rows = normalize(gate, dim=1)
    room = len(rows) // EXPERTS
    centres = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:EXPERTS]]
    parts = torch.empty(0)
    for _ in range(4):
        free, home = [room] * EXPERTS, [-1] * len(rows)
        for place in (rows @ centres.T).flatten().argsort(descending=True).tolist():
            row, expert = divmod(place, EXPERTS)
            if home[row] < 0 and free[expert]:
                home[row], free[expert] = expert, free[expert] - 1
        parts = torch.tensor(home).argsort(stable=True).reshape(EXPERTS, room)
        centres = normalize(rows[parts].mean(1), dim=1)
    return parts


def fitted(x: Tensor, loudness: Tensor) -> Tensor:
    """The router [EXPERTS, H] that tells best from x [T, H] which experts answer loudly, [T, EXPERTS]."""
    wanted = (loudness - loudness.mean(0)) / loudness.std(0)
    square = x.T @ x
    ridge = 1e-2 * square.diagonal().mean() * torch.eye(len(square))
    return torch.linalg.solve(square + ridge, x.T @ wanted).T


@torch.inference_mode()
def inputs_of_mlps(model, texts: list[list[int]], blocks: list[int]) -> dict[int, list[Tensor]]:
    """By block, of each text what its MLP reads: float32 [T, H]."""
    seen: dict[int, list[Tensor]] = {index: [] for index in blocks}
    hooks = [
        model.model.language_model.layers[index].mlp.register_forward_pre_hook(
            lambda module, given, index=index: seen[index].append(given[0][0].float())
        )
        for index in blocks
    ]
    for ids in texts:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


@torch.inference_mode()
def main() -> int:
    """A line for each seed: mean over the layers, the worst layer, and in how many the method smoothed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", type=Path, help="SmolLM2 in the shape of Qwen2-VL")
    parser.add_argument("texts", type=Path, help="the packages that hold text")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="by which neurons are dealt out")
    parser.add_argument("--passages", type=int, default=1, help="of each kind of text")
    parser.add_argument("--tokens", type=int, default=300, help="of each passage")
    chosen = parser.parse_args()
    model, encoder = runtime.load_float(chosen.source)
    model = model.float()
    layers = model.model.language_model.layers
    blocks = list(range(0, len(layers), EVERY))
    texts = [
        [
            ids
            for kind in KINDS
            for ids in passages(encoder.tokenizer, chosen.texts, kind, chosen.passages, chosen.tokens, calibration=fit)
        ]
        for fit in (True, False)
    ]
    fits, others = (inputs_of_mlps(model, each, blocks) for each in texts)
    unseen = doubt(len({token for ids in texts[0] for token in ids}))
    for seed in chosen.seeds:
        found: dict[str, list[float]] = {name: [] for name in ("none", "m2", "m2, w - 1", "m4", "m4, w - 1")}
        smoothed = dict.fromkeys(found, 0)
        for index in blocks:
            mlp, x, held_out = layers[index].mlp, torch.cat(fits[index]), torch.cat(others[index])
            weights = (each.weight.detach().float() for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
            layer = Layer(*weights, x, seed)
            observer = Observer("experts", x.shape[1], -(-ROWS // len(fits[index])))
            for number, each in enumerate(fits[index]):
                observer.update(each, number, seed=number)
            norm = layers[index].post_attention_layernorm.weight.detach().float()
            prior = Prior(norm.abs(), unseen)
            wanted, scale = layer(held_out), None
            for name, ratios in found.items():
                if name in METHODS:
                    scale = None if name == "none" else layer.smoothing(name, observer.stats(), prior)
                elif scale is not None:
                    stored = FoldedNorm("norm", (norm - 1).bfloat16().float(), None, torch.bfloat16, adds=1.0)
                    scale, _ = stored.absorb(scale, None)
                smoothed[name] += scale is not None
                used = torch.ones(x.shape[1]) if scale is None else scale
                got = layer(held_out, layer.quantized(used), used)
                ratios.append(signal_to_noise(wanted, got - wanted))
        rows = (
            f"{name} {sum(ratios) / len(ratios):.1f} (least {min(ratios):.1f}, {smoothed[name]} smoothed)"
            for name, ratios in found.items()
        )
        print(f"seed {seed}, {len(blocks)} layers, dB:  {'   '.join(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
