"""Tables and plots of the measurements of bench_loss.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.common.html_page import new_figure, save_figure

PARTS = ("simple projections", "simple loss", "ranges", "joiner projections", "pruned loss", "backward")


def groups(result: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the records by what is compared (a fixed shape, or all batches of a mode) and by backend."""
    fixed = result["options"]["mode"] in ("fixed", "growth")
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for r in result["records"]:
        key = f"N {r['N']}, T {r['T']}, U {r['U']}, C {r['C']}, S {r['S']}" if fixed else f"{result['options']['mode']} batches"
        grouped.setdefault(key, {}).setdefault(r["backend"], []).append(r)
    return grouped


def summary(records: list[dict[str, Any]]) -> tuple[dict[str, float], dict[str, float]] | None:
    """Return the mean milliseconds and largest MiB of each part and of the whole; None if a batch failed."""
    if any("error" in r for r in records):
        return None
    ms = {part: sum(1000 * r["seconds"][part] for r in records) / len(records) for part in PARTS}
    mib = {part: max(r["mib"][part] for r in records) for part in PARTS}
    return {**ms, "total": sum(ms.values())}, {**mib, "total": max(mib.values())}


def table(result: dict[str, Any]) -> str:
    """Return Markdown: time and peak memory by part, ratios to k2 if it was measured, differences to float64."""
    o = result["options"]
    lines = [
        f"# Loss backends: {o['mode']}, {o['precision']}, {o['device']}",
        "",
        f"{result['date']}, {result['hardware']}, {o['threads']} threads; joiner {o['width']}, prune range {o['prune_range']}. "
        "Milliseconds per head step, mean over batches (median step of each); peak MiB above what was in use before the "
        "step, largest over batches.",
        "",
    ]
    for name, by_backend in groups(result).items():
        count = len(next(iter(by_backend.values())))
        lines += [f"## {name}" + (f" ({count})" if count > 1 else ""), ""]
        lines.append("| part | " + " | ".join(f"{b} ms | {b} MiB" for b in by_backend) + " |")
        lines.append("|---|" + "--:|--:|" * len(by_backend))
        sums = {b: summary(records) for b, records in by_backend.items()}
        for part in (*PARTS, "total"):
            cells = [f"{s[0][part]:.1f} | {s[1][part]:.0f}" if s else "failed | " for s in sums.values()]
            lines.append(f"| {part} | " + " | ".join(cells) + " |")
        for backend, records in by_backend.items():
            errors = {r["error"] for r in records if "error" in r}
            lines += [f"\n{backend} failed: {error}" for error in sorted(errors)]
        k2 = sums.get("k2")
        lines += [
            f"\n{b} against k2: time {s[0]['total'] / k2[0]['total']:.2f}, memory {s[1]['total'] / k2[1]['total']:.2f}"
            for b, s in sums.items()
            if k2 and s and b != "k2"
        ]
        lines.append("")
    lines += growth(result) if result["options"]["mode"] == "growth" else []
    lines += ["## Relative difference of losses to the float64 definition", ""]
    lines += ["| backend | simple | pruned |", "|---|--:|--:|"]
    lines += [f"| {b} | {d['simple']:.1e} | {d['pruned']:.1e} |" for b, d in result["differences"].items()]
    lines += ["", "(two shortest utterances of the first batch; torchaudio's against the unpruned loss)", "", "Versions: "]
    lines[-1] += "; ".join(f"{b}: " + ", ".join(f"{k} {v}" for k, v in vs.items()) for b, vs in result["versions"].items())
    return "\n".join(lines) + "\n"


def growth(result: dict[str, Any]) -> list[str]:
    """Return lines: the growth of the lattice, of the pruned loss's time and of the step's time since the first shape."""
    lines = ["## Growth: of the lattice (N T S), the pruned loss's forward pass, the step", ""]
    lines += ["| backend | N | T | S | lattice | pruned loss | step |", "|---|--:|--:|--:|--:|--:|--:|"]
    first: dict[str, tuple[float, ...]] = {}
    for r in result["records"]:
        if "error" in r:
            continue
        sizes = (r["N"] * r["T"] * r["S"], r["seconds"]["pruned loss"], sum(r["seconds"].values()))
        base = first.setdefault(r["backend"], sizes)
        ratios = " | ".join(f"{a / b:.2f}" for a, b in zip(sizes, base, strict=True))
        lines.append(f"| {r['backend']} | {r['N']} | {r['T']} | {r['S']} | {ratios} |")
    return [*lines, ""]


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot the time by part, stacked, and the peak memory of each backend, as PNG."""
    grouped = groups(result)
    figure = new_figure(1.2 + 1.8 * len(grouped), 9.0, layout=None)
    axes = figure.subplots(len(grouped), 2, squeeze=False)
    for (name, by_backend), (left, right) in zip(grouped.items(), axes, strict=True):
        for y, (_, records) in enumerate(by_backend.items()):
            s = summary(records)
            if s is None:
                left.text(0, y, " failed", va="center")
                continue
            start = 0.0
            for i, part in enumerate(PARTS):
                left.barh(y, s[0][part], left=start, color=f"C{i}", label=part if y == 0 else None)
                start += s[0][part]
            right.barh(y, s[1]["total"], color="C7")
        for axis, title in ((left, "ms per step"), (right, "peak MiB")):
            axis.set_yticks(range(len(by_backend)), list(by_backend))
            axis.invert_yaxis()
            axis.set_title(f"{name}: {title}", fontsize=9)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=3, fontsize=8)
    figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))
    save_figure(figure, path, dpi=120)
