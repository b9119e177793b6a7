"""results.json as a table in Markdown and as plots."""

from pathlib import Path

RATIOS = (
    ("ours m2", "msmodelslim m2"),
    ("ours m4", "msmodelslim m4"),
    ("ours m2", "llm-compressor"),
    ("ours m4", "llm-compressor"),
)


def machine_line(machine: dict) -> str:
    return (
        f"{machine['name']}, {machine['cores']} cores: bfloat16 product {machine['matmul'] / 1e12:.2f} and int8"
        f" {machine['matmul_int8'] / 1e12:.2f} T operations/s, read {machine['read'] / 1e9:.1f} GB/s, write"
        f" {machine['write'] / 1e9:.2f} GB/s, imports {machine['imports']:.1f} s"
    )


def markdown(results: dict) -> str:
    """Every part that is there."""
    lines = [machine_line(results["machine"]), ""]
    if part := results.get("peers"):
        peers = part["programs"]
        lines += ["| whole process | median | rounds | peak memory |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {found['seconds']:.1f} s | {', '.join(f'{took:.1f}' for took in found['rounds'])} |"
            f" {found['peak'] / 1e9:.2f} GB |"
            for name, found in peers.items()
        ]
        lines += [f"| the machine's bound for ours | {part['bound']:.1f} s | | |"]
        lines += ["", "| ratio of medians | | at the bound |", "|---|---|---|"]
        for ours, theirs in RATIOS:
            lines.append(
                f"| {theirs} / {ours} | {peers[theirs]['seconds'] / peers[ours]['seconds']:.1f} |"
                f" {peers[theirs]['seconds'] / part['bound']:.1f} |"
            )
        lines.append("")
    for part in (results[key] for key in results if key.startswith("full ")):
        lines += [f"| {part['size']}, all blocks, {part['images']} photographs | |", "|---|---|"]
        lines += [
            f"| time | {part['seconds']:.0f} s |",
            f"| bound | {part['bound']:.0f} s |",
            f"| time / bound | {part['seconds'] / part['bound']:.2f} |",
        ]
        lines += [
            f"| one forward pass | {part['operations'] / 1e12:.0f} T operations |",
            f"| read, written | {part['read'] / 1e9:.2f} GB, {part['written'] / 1e9:.2f} GB |",
        ]
        lines += [
            f"| {step} | {seconds / part['seconds']:.0%} of the time |" for step, seconds in part["steps"].items()
        ]
        lines += [f"| peak memory | {_memory(part)} |", ""]
    if part := results.get("search"):
        shares = ", ".join(f"{step} {seconds / part['seconds']:.0%}" for step, seconds in part["steps"].items())
        lines += [
            (
                f"8 photographs, {part['seconds']:.1f} s: {shares}. verify: {part['verify']:.1f} s,"
                f" {part['verify'] / part['seconds']:.1f} times calibration."
            ),
            "",
        ]
    if part := results.get("scaling"):
        lines += [
            "| photographs | " + " | ".join(str(count) for count, _ in part["images"]) + " |",
            "|---" * (1 + len(part["images"])) + "|",
        ]
        lines += ["| seconds | " + " | ".join(f"{seconds:.1f}" for _, seconds in part["images"]) + " |", ""]
        lines += [
            "| blocks in each tower | " + " | ".join(str(count) for count, _ in part["blocks"]) + " |",
            "|---" * (1 + len(part["blocks"])) + "|",
        ]
        lines += ["| seconds | " + " | ".join(f"{seconds:.1f}" for _, seconds in part["blocks"]) + " |", ""]
    if part := results.get("memory"):
        lines += ["| peak memory, 2 photographs | |", "|---|---|"]
        lines += [f"| {entry['size']}, {_cut(entry)} | {_memory(entry)} |" for entry in part] + [""]
    if part := results.get("ranks"):
        one, two = part["1"], part["2"]
        lines += [
            f"Two processes of one thread against one: whole {one['seconds']:.1f} s / {two['seconds']:.1f} s ="
            f" {one['seconds'] / two['seconds']:.2f}, "
        ]
        lines[-1] += (
            f"blocks alone {one['blocks']:.1f} s / {two['blocks']:.1f} s = {one['blocks'] / two['blocks']:.2f}."
        )
    return "\n".join(lines) + "\n"


def _memory(entry: dict) -> str:
    return f"{entry['peak'] / 1e9:.2f} GB" + (f", on the card {entry['card'] / 1e9:.2f} GB" if entry["card"] else "")


def _cut(entry: dict) -> str:
    return f"{entry['blocks']} + {entry['blocks']} blocks" if entry["blocks"] else "all blocks"


def plots(results: dict, directory: Path) -> None:
    """time.png: against photographs and against blocks, with the line through the ends; memory.png: peak by model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if part := results.get("scaling"):
        figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for axis, series, what in zip(axes, (part["images"], part["blocks"]), ("photographs", "blocks in each tower")):
            counts, seconds = zip(*series)
            axis.plot([counts[0], counts[-1]], [seconds[0], seconds[-1]], color="0.75", label="straight line")
            axis.plot(counts, seconds, "o", color="#1f6feb", label="measured")
            axis.set(xlabel=what, ylabel="seconds, whole process", xlim=(0, None), ylim=(0, None))
            axis.legend(frameon=False)
        figure.savefig(directory / "time.png", dpi=110)
        pyplot.close(figure)
    if part := results.get("memory"):
        figure, axis = pyplot.subplots(figsize=(5.5, 3.2), layout="constrained")
        names = [f"{entry['size']}\n{_cut(entry)}" for entry in part]
        bars = axis.bar(names, [entry["peak"] / 1e9 for entry in part], width=0.5, color="#1f6feb")
        axis.bar_label(bars, fmt="%.2f")
        axis.set(ylabel="peak memory, GB")
        axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(directory / "memory.png", dpi=110)
        pyplot.close(figure)
