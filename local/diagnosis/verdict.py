"""Judge the measurements of `local.diagnosis.probe.Probe`: one line that names modules and utterances.

A gradient that exploded is large in all modules below. So a module is judged by the norm at its input / the norm at its
output, for each sequence, and an utterance by the others in the same module: ratios do not depend on the loss's scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from local.common.visible import visible
from local.diagnosis.probe import Probed

import torch
from torch import Tensor

# The limits were chosen on `tiny`. The first four are above the values of its healthy models, trained or not (at most 4, 10,
# 2 and 3.2), and below those of faults. Faults were: a recurrent matrix times 8 (at least 1900 if the gradient explodes);
# an utterance of noise (at least 26 after 7 epochs; one of its channels at least 4.3, except 3.5 and 3.8 in two of nine
# untrained models); features times 100 (100). Random tokens give values on both sides of the second limit. An untrained
# model gives noise and wrong tokens the same gradient as speech.
EXPLODES = 10.0  # a module's amplification of a sequence's gradient
GRADIENT = 20.0  # a sequence's gradient / the upper quartile
ACTIVATION = 8.0  # the rms of a sequence's activations / the upper quartile
CHANNEL = 4.0  # the rms of one channel of a sequence's activations / the upper quartile
FLOOR = 0.03  # smallest upper quartile / the channels' mean; without it, almost dead channels could have any ratio
RECURRENT = 4.0  # the rms of a layer's recurrent matrix / the median layer's; a trained layer times 8 may not explode
FEWEST = 4  # smallest number of sequences with a quartile of their own
MAX_NAMED = 5  # largest number of utterances named in a line
FRONT_END = "encoder.encoder_embed."  # it gets the features first, and has no dropout
EXPLOSIONS, GRADIENTS = "gradient explodes", "gradient is an outlier"  # kinds of findings
ACTIVATIONS, CHANNELS = "activations are outliers", "a channel is an outlier"
BELOW = "encoder"  # outliers are only sought here: well recognised utterances give the loss's projections almost no gradient


@dataclass
class Finding:
    """A module and the utterances that exceed a limit in it, the worst one first, with the ratios that were compared."""

    module: str
    utterances: list[str]
    largest: float
    median: float  # of all sequences
    out_of: int

    def names(self) -> str:
        """Return the utterances in words, the first few by name."""
        named, more = ", ".join(map(visible, self.utterances[:MAX_NAMED])), len(self.utterances) - MAX_NAMED
        if len(self.utterances) == self.out_of > 1:
            return f"all {self.out_of} utterances, above all {named}"
        noun = "utterance" if len(self.utterances) == 1 else "utterances"
        return f"{noun} {named}" + (f" and {more} more" if more > 0 else "")


@dataclass
class Verdict:
    """All findings by kind, the worst first, and the line that sums them up."""

    line: str
    findings: dict[str, list[Finding]]


def verdict(modules: dict[str, Probed], ids: Sequence[str], recurrent: Mapping[str, float] | None = None) -> Verdict:
    """Judge a probe's measurements over the utterances `ids`. recurrent: the rms of the recurrent matrices, by layer."""
    exploding = _innermost(
        [_finding(p.name, p.amplification(), ids, EXPLODES) for p in modules.values() if p.amplification().numel()]
    )
    # If a module explodes, only the gradient that the loss sends to the encoder still distinguishes utterances.
    judged = [name for name in modules if (name == BELOW if exploding else name.startswith(BELOW))]
    gradients = [_outliers(name, modules[name].gradient.norms, ids, GRADIENT) for name in judged]
    activations = [_outliers(p.name, p.output.rms, ids, ACTIVATION) for p in modules.values()]
    channels = [_finding(p.name, worst_channel(p), ids, CHANNEL) for p in modules.values() if p.name.startswith(FRONT_END)]
    outlying = {GRADIENTS: gradients, ACTIVATIONS: activations, CHANNELS: channels}
    findings = {EXPLOSIONS: exploding, **{kind: _worst_first(found) for kind, found in outlying.items()}}
    return Verdict(_not_finite(modules, ids) or _line(findings, modules, ids, recurrent or {}), findings)


def _finding(name: str, values: Tensor, ids: Sequence[str], limit: float) -> Finding:
    worst = [int(i) for i in values.argsort(descending=True) if values[i] > limit]
    return Finding(name, [ids[i] for i in worst], float(values.max()), float(values.median()), len(ids))


def _outliers(name: str, values: list[Tensor], ids: Sequence[str], limit: float) -> Finding:
    """Find the sequences whose value exceeds `limit` times the upper quartile, of all or of the batch, whichever is larger.

    The median would not do: a trained model gives most utterances almost no gradient. The batch counts because a layer that
    layer dropout bypasses in one batch has a tenth of the gradient there.
    """
    if not values:
        return Finding(name, [], 0.0, 1.0, len(ids))
    overall = _upper_quartile(torch.cat(values))
    ratios = [v / (overall if len(v) < FEWEST else max(overall, _upper_quartile(v))) for v in values]
    return _finding(name, torch.cat(ratios), ids, limit)


def worst_channel(p: Probed) -> Tensor:
    """Return the largest ratio of a sequence's channels to the upper quartile of all sequences (N,); 1 for too few sequences.

    Noise, overdriven and clipped speech have the same rms over all channels as speech, but excite other channels.
    """
    rms = torch.cat(p.output.by_channel)  # (N, C)
    if len(rms) < FEWEST:
        return torch.ones(len(rms), dtype=torch.float64)
    usual = rms.sort(dim=0).values[3 * (len(rms) - 1) // 4]
    return (rms / usual.clamp(min=max(FLOOR * float(usual.mean()), 1e-30))).amax(dim=1)


def _upper_quartile(values: Tensor) -> float:
    """Return a value that a quarter of `values`, rounded up, reach or exceed; never the largest of several."""
    return max(float(values.sort().values[3 * (len(values) - 1) // 4]), 1e-30)


def _worst_first(findings: list[Finding]) -> list[Finding]:
    return sorted((f for f in findings if f.utterances), key=lambda f: -f.largest)


def _innermost(findings: list[Finding]) -> list[Finding]:
    """Return the modules that explode without a part that explodes, the worst one first."""
    found = _worst_first(findings)
    return [f for f in found if not any(other.module.startswith(f.module + ".") for other in found)]


def _not_finite(modules: dict[str, Probed], ids: Sequence[str]) -> str:
    """Return a line on the first module with a non-finite value, forwards or else backwards; "" if all are finite."""
    for p in modules.values():  # in the order of the forward pass
        if (found := _bad(p.output.bad, ids)) is not None:
            return f"not finite: the activations of {p.name}, {found.names()}"
    for p in reversed(modules.values()):
        if (found := _bad(p.gradient.bad, ids)) is not None:
            return f"not finite: the gradient at the output of {p.name}, {found.names()}; finite in all later modules"
        if (found := _bad(p.passed_bad, ids)) is not None and not _has_bad_parts(p.name, modules):
            return f"not finite: the gradient at the input of {p.name}, {found.names()}; finite at its output"
    return ""


def _bad(counts: list[Tensor], ids: Sequence[str]) -> Finding | None:
    if not counts or not bool(torch.cat(counts).any()):
        return None
    return _finding("", torch.cat(counts).double(), ids, 0.0)


def _has_bad_parts(name: str, modules: dict[str, Probed]) -> bool:
    return any(n.startswith(name + ".") and any(bool(c.any()) for c in p.passed_bad) for n, p in modules.items())


def _large_matrix(recurrent: Mapping[str, float]) -> tuple[str, float]:
    """Return the layer with the largest recurrent matrix, and its rms / the median layer's.

    A saturated layer passes little gradient back, so a matrix that is far too large may not show in the gradient.
    """
    layer = max(recurrent, key=lambda name: recurrent[name], default="")
    usual = sorted(recurrent.values())[(len(recurrent) - 1) // 2] if recurrent else 0.0
    return layer, recurrent.get(layer, 0.0) / max(usual, 1e-30)


def _line(
    findings: dict[str, list[Finding]], modules: dict[str, Probed], ids: Sequence[str], recurrent: Mapping[str, float]
) -> str:
    said = []
    layer, ratio = _large_matrix(recurrent)
    explosions, gradients, activations, channels = findings.values()
    for f in explosions[:1]:
        said.append(
            f"gradient explodes in {f.module}: x {number(f.largest)} from its output to its input, {f.names()}; "
            f"median sequence x {number(f.median)}"
        )
    if ratio > RECURRENT and layer not in {f.module for f in explosions}:
        said.append(f"the recurrent matrix of {layer} is an outlier: x {number(ratio)} the median layer's rms")
    for f in gradients[:1]:
        loss = next((p for p in reversed(modules.values()) if p.name == BELOW and p.gradient.norms), None)
        entry = _outliers(BELOW, loss.gradient.norms, ids, GRADIENT).largest if loss else 0.0
        start = f" (x {number(entry)} at the loss)" if entry > GRADIENT / 3 else ""
        said.append(f"the gradient of {f.names()} is an outlier in {f.module}: x {number(f.largest)} the upper quartile{start}")
    for f in activations[:1]:
        said.append(f"activations of {f.names()} are outliers in {f.module}: x {number(f.largest)} the upper quartile")
    named = {u for f in activations for u in f.utterances}
    for f in [f for f in channels if not named.issuperset(f.utterances)][:1]:
        said.append(f"a channel of {f.names()} is an outlier in {f.module}: x {number(f.largest)} the upper quartile")
    if not said:
        said.append("nothing explodes")
    if not explosions:
        all_ratios = [_finding(p.name, a, ids, math.inf) for p in modules.values() if (a := p.amplification()).numel()]
        f = max(all_ratios, key=lambda f: f.largest, default=Finding("any module", [], 0.0, 0.0, 0))
        said.append(f"the largest ratio from a module's output to its input is x {number(f.largest)}, in {f.module}")
    return "; ".join(said)


def number(value: float) -> str:
    """Format a number with three digits: 1.32, 431, 2.4e+05."""
    return f"{value:.0f}" if 100 <= value < 10000 else f"{value:.3g}"
