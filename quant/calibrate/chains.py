"""Groups that must be smoothed one after the other."""

from ..families.family import Group


def chains(groups: list[Group]) -> dict[Group, int]:
    """Group -> the number of the chain that it is in: groups are in one if they share a module, directly or through
    others.
    """
    found: list[tuple[set[str | None], list[Group]]] = []
    for group in groups:
        modules, members = {*group.linears, group.source}, [group]
        for chain in [chain for chain in found if chain[0] & modules]:
            found.remove(chain)
            modules, members = modules | chain[0], chain[1] + members
        found.append((modules, members))
    return {group: number for number, (_, members) in enumerate(found) for group in members}
