"""How large the weights make a group's channels, before any sample is seen (arithmetic.prior uses it)."""

from torch import Tensor

from ..arithmetic.fold import FoldedLinear, FoldedNorm, spread_heads
from ..arithmetic.stats import Stats
from ..families.family import Group


def channel_sizes(
    group: Group,
    prefix: str,
    heads: tuple[int, int],
    linears: dict[str, FoldedLinear],
    norms: dict[str, FoldedNorm],
    stats: dict[Group, Stats],
) -> Tensor:
    """float32 [C] of a group that has a source: of a norm its weight, |w_c|; of a linear what it answers to independent
    inputs of the sizes that were seen, sqrt(sum_i (W_ci rms(x_i))^2).

    prefix: the block's; heads: query and key/value heads; linears, norms: the block's, nothing folded yet; stats: of
    the groups that were observed.
    """
    source = group.source_in(prefix)
    if group.kind == "norm":
        return (norms[source].weight + norms[source].adds).abs()
    weight = linears[source].float()
    reader = next((each for each in stats if group.source in each.linears), None)
    if reader is not None:
        weight = weight * stats[reader].rows.square().mean(0).sqrt()
    size = weight.square().sum(1).sqrt()
    if group.kind == "up":
        return size[group.divided(len(size), len(stats[group].lo))]
    values = len(stats[group].lo) // heads[0] * heads[1]
    return spread_heads(size[group.divided(len(size), values)], *heads)
