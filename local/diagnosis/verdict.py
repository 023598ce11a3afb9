"""From what `local.diagnosis.probe.Probe` measured to one line: which module, which utterances.

Large gradients alone name the wrong module: what explodes in one is large in all below it. So a module is judged by what
it does to the gradient that reaches it: the norm at its input over the norm at its output, for each sequence. An utterance
is judged against the others in the same module. Both by ratios, since a gradient's scale means nothing by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from local.diagnosis.probe import Probed

import torch
from torch import Tensor

# Chosen on `tiny`, between what its healthy models show, trained or not (at most 4, 10, 2 and 3.2), and what faults do: a
# recurrent matrix times 8 (from 1900 on, where it explodes), an utterance of noise (from 26 on, of 7 epochs; a channel of it
# from 4.3 on, but for two untrained models of nine, 3.5 and 3.8), features times 100 (100). Random tokens fall on both sides
# of the second limit; an untrained model gives noise and wrong tokens the same gradient as speech.
EXPLODES = 10.0  # a module's amplification of a sequence's gradient
GRADIENT = 20.0  # a sequence's gradient / the upper quartile's
ACTIVATION = 8.0  # the rms of a sequence's activations / the upper quartile's
CHANNEL = 4.0  # the rms of one channel of a sequence's activations / the upper quartile's
FLOOR = 0.03  # of the channels' mean: the least upper quartile, or channels that are all but dead would have any ratio
RECURRENT = 4.0  # the rms of a layer's recurrent matrix / the median layer's; of a trained layer times 8 need not explode
FEWEST = 4  # sequences that have a quartile of their own
MAX_NAMED = 5  # utterances named in a line
FRONT_END = "encoder.encoder_embed."  # sees the features first, and without dropout
BELOW = "encoder"  # the loss's own projections get next to no gradient from what is recognised well: no outliers there


@dataclass
class Finding:
    """A module and, for the utterances of which something is out of proportion, by how much; the worst one first."""

    module: str
    utterances: list[str]
    largest: float
    median: float  # of all sequences
    out_of: int

    def names(self) -> str:
        """The utterances, the first few by name."""
        named, more = ", ".join(self.utterances[:MAX_NAMED]), len(self.utterances) - MAX_NAMED
        if len(self.utterances) == self.out_of > 1:
            return f"all {self.out_of} utterances, most of all {named}"
        return (
            ("utterance " if len(self.utterances) == 1 else "utterances ") + named + (f" and {more} more" if more > 0 else "")
        )


@dataclass
class Verdict:
    """What was found, and the line that says so."""

    line: str
    explosions: list[Finding]
    gradients: list[Finding]
    activations: list[Finding]
    channels: list[Finding]


def verdict(modules: dict[str, Probed], ids: Sequence[str], recurrent: Mapping[str, float] | None = None) -> Verdict:
    """Judge what a probe measured over utterances `ids`. Values that are not finite come first, then exploding modules,
    then layers whose recurrent matrix stands out, then utterances that do. recurrent: the rms of these, by layer."""
    exploding = _innermost(
        [_finding(p.name, p.amplification(), ids, EXPLODES) for p in modules.values() if p.amplification().numel()]
    )
    # In a model in which something explodes only the loss's own gradient still tells one utterance from another.
    judged = [name for name in modules if (name == BELOW if exploding else name.startswith(BELOW))]
    gradients = [_outliers(name, modules[name].gradient.norms, ids, GRADIENT) for name in judged]
    activations = [_outliers(p.name, p.output.rms, ids, ACTIVATION) for p in modules.values()]
    channels = [_finding(p.name, worst_channel(p), ids, CHANNEL) for p in modules.values() if p.name.startswith(FRONT_END)]
    found = Verdict("", exploding, *(_worst_first(f) for f in (gradients, activations, channels)))
    found.line = _not_finite(modules, ids) or _line(found, modules, ids, recurrent or {})
    return found


def _finding(name: str, values: Tensor, ids: Sequence[str], limit: float) -> Finding:
    worst = [int(i) for i in values.argsort(descending=True) if values[i] > limit]
    return Finding(name, [ids[i] for i in worst], float(values.max()), float(values.median()), len(ids))


def _outliers(name: str, values: list[Tensor], ids: Sequence[str], limit: float) -> Finding:
    """Sequences whose value is more than `limit` times the upper quartile.

    Not the median: with a trained model most utterances are recognised and have next to no gradient, and those with an
    error stand far above them without being corrupt. The quartile is that of all sequences or, where it is larger, of the
    batch: a layer that layer dropout bypasses in one batch has a tenth of the gradient there.
    """
    if not values:
        return Finding(name, [], 0.0, 1.0, len(ids))
    overall = _upper_quartile(torch.cat(values))
    ratios = [v / (overall if len(v) < FEWEST else max(overall, _upper_quartile(v))) for v in values]
    return _finding(name, torch.cat(ratios), ids, limit)


def worst_channel(p: Probed) -> Tensor:
    """By how much the channel of a sequence that is most out of proportion exceeds the upper quartile of all sequences (N,).

    Noise, overdriven and clipped speech have the rms of speech over all channels, but excite others. 1 where there are too
    few sequences to tell.
    """
    rms = torch.cat(p.output.by_channel)  # (N, C)
    if len(rms) < FEWEST:
        return torch.ones(len(rms), dtype=torch.float64)
    usual = rms.sort(dim=0).values[3 * (len(rms) - 1) // 4]
    return (rms / usual.clamp(min=max(FLOOR * float(usual.mean()), 1e-30))).amax(dim=1)


def _upper_quartile(values: Tensor) -> float:
    """A value that a quarter of `values`, rounded up, is not below; never the largest of several."""
    return max(float(values.sort().values[3 * (len(values) - 1) // 4]), 1e-30)


def _worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted((f for f in findings if f.utterances), key=lambda f: -f.largest)


def _innermost(findings: list[Finding]) -> list[Finding]:
    """Of the modules that explode, those in which no part explodes; the worst one first."""
    found = _worst_first(findings)
    names = [f.module for f in found]
    return [f for f in found if not any(n.startswith(f.module + ".") for n in names)]


def _not_finite(modules: dict[str, Probed], ids: Sequence[str]) -> str:
    """A line on the first module with a value that is not finite, forwards or else backwards; empty where all are."""
    for p in modules.values():  # in the order in which they were done
        if (found := _bad(p.output.bad, ids)) is not None:
            return f"not finite: the activations of {p.name}, {found.names()}"
    for p in reversed(modules.values()):
        if (found := _bad(p.gradient.bad, ids)) is not None:
            return f"not finite: the gradient that reaches {p.name}, {found.names()}; what follows it forwards is finite"
        if (found := _bad(p.passed_bad, ids)) is not None and not _has_bad_parts(p.name, modules):
            return f"not finite: the gradient that leaves {p.name} at its input, {found.names()}; finite at its output"
    return ""


def _bad(counts: list[Tensor], ids: Sequence[str]) -> Finding | None:
    if not counts or not bool(torch.cat(counts).any()):
        return None
    return _finding("", torch.cat(counts).double(), ids, 0.0)


def _has_bad_parts(name: str, modules: dict[str, Probed]) -> bool:
    return any(n.startswith(name + ".") and any(bool(c.any()) for c in p.passed_bad) for n, p in modules.items())


def _large_matrix(recurrent: Mapping[str, float]) -> tuple[str, float]:
    """The layer of the largest recurrent matrix, and its rms over the median layer's; a saturated layer passes little
    gradient back, so that a matrix that is far too large need not show in the gradient."""
    layer = max(recurrent, key=lambda name: recurrent[name], default="")
    usual = sorted(recurrent.values())[(len(recurrent) - 1) // 2] if recurrent else 0.0
    return layer, recurrent.get(layer, 0.0) / max(usual, 1e-30)


def _line(found: Verdict, modules: dict[str, Probed], ids: Sequence[str], recurrent: Mapping[str, float]) -> str:
    said = []
    layer, ratio = _large_matrix(recurrent)
    if found.explosions:
        f = found.explosions[0]
        said.append(
            f"gradient explodes in {f.module}: x {number(f.largest)} from its output to its input, {f.names()}; "
            f"median sequence x {number(f.median)}"
        )
    if ratio > RECURRENT and layer not in {f.module for f in found.explosions}:
        said.append(f"the recurrent matrix of {layer} is out of proportion: x {number(ratio)} the median layer's rms")
    if found.gradients:
        f = found.gradients[0]
        loss = next((p for p in reversed(modules.values()) if p.name == BELOW and p.gradient.norms), None)
        entry = _outliers(BELOW, loss.gradient.norms, ids, GRADIENT).largest if loss else 0.0
        start = f" (x {number(entry)} as it comes from the loss)" if entry > GRADIENT / 3 else ""
        said.append(
            f"gradient of {f.names()} is out of proportion in {f.module}: x {number(f.largest)} the upper quartile{start}"
        )
    if found.activations:
        f = found.activations[0]
        said.append(f"activations of {f.names()} are out of proportion in {f.module}: x {number(f.largest)} the upper quartile")
    named = {u for f in found.activations for u in f.utterances}
    for f in [f for f in found.channels if not named.issuperset(f.utterances)][:1]:
        said.append(f"a channel of {f.names()} is out of proportion in {f.module}: x {number(f.largest)} the upper quartile")
    if not said:
        said.append("nothing explodes")
    if not found.explosions:
        f = max((_finding(p.name, a, ids, math.inf) for p in modules.values() if (a := p.amplification()).numel()),
                key=lambda f: f.largest, default=Finding("any module", [], 0.0, 0.0, 0))  # fmt: skip
        said.append(f"the largest ratio from a module's output to its input is x {number(f.largest)}, in {f.module}")
    return "; ".join(said)


def number(value: float) -> str:
    """Three digits: 1.32, 431, 2.4e+05."""
    return f"{value:.0f}" if 100 <= value < 10000 else f"{value:.3g}"
