"""Measure the activations and gradients of every module of a model over a few batches, for `local.diagnosis.verdict`."""

from __future__ import annotations

from functools import partial
from typing import Any

from model.encoder.subsampling import subsampled
from model.transducer import Transducer

import numpy as np
import torch
from torch import Tensor, nn

WIDEST = 1024  # largest number of channels for which the covariance's eigenvalues are computed
ROWS = 4096  # largest number of positions per batch that enter the covariance
PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
BY_TOKEN = ("decoder", "simple_lm_proj", "joiner.decoder_proj")  # modules over tokens; all others are over frames


def axes(name: str, module: nn.Module, dims: int) -> str:
    """Return the axes of a module's input and output: N sequences, T frames or tokens, C channels, F mel bins; "" for others.

    name: the module's in `Transducer`. dims: the tensor's number of dimensions. The joiner's (N, T, range, C) only exists
    inside the pruned loss. `Probe` checks the shape that follows from these axes.
    """
    if dims == 4:
        return "NCTF"
    if isinstance(module, nn.Conv1d | nn.BatchNorm1d | nn.InstanceNorm1d):
        return "NCT"
    if dims == 3:
        return "TNC" if name.startswith("encoder.encoder.") or name == "encoder.encoder" else "NTC"
    return ""


def in_order(x: Tensor, letters: str) -> Tensor:
    """Return x, whose axes are `letters`, as (N, T, F, C); F is 1 if x has no mel bins."""
    x = x.permute([letters.index(c) for c in ("NTFC" if "F" in letters else "NTC")])
    return x if "F" in letters else x.unsqueeze(2)


class Spread:
    """Sums of one module's activations or gradients, without padding. Non-finite values are counted, and summed as 0."""

    def __init__(self) -> None:
        self.norms: list[Tensor] = []  # one per batch, (N,): root of the sum of squares
        self.rms: list[Tensor] = []  # (N,)
        self.bad: list[Tensor] = []  # (N,): number of non-finite values
        self.by_channel: list[Tensor] = []  # (N, C): rms of every channel
        self.channels = self.times = torch.zeros(0, dtype=torch.float64)  # sums of squares
        self.times_count = torch.zeros(0, dtype=torch.float64)
        self.positive = self.count = self.rows = 0.0
        self.total = self.products = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor, lens: Tensor) -> None:
        """Add one batch: x (N, T, F, C), lens (N,): number of valid positions of T."""
        t, f, c = x.shape[1:]
        lens = lens.to(x.device)
        valid = torch.arange(t, device=x.device) < lens[:, None]  # (N, T)
        x, bad = finite(x.detach().float().masked_fill(~valid[:, :, None, None], 0.0))  # padding may hold NaN, too
        scale = x.abs().amax().clamp(min=1e-30).double().cpu()  # squares of large values overflow float32
        x = x / scale.to(x)
        by_time_and_channel = x.square().sum(2).double()  # (N, T, C)
        by_time = by_time_and_channel.sum(2)
        of_channels = by_time_and_channel.sum(1).cpu() * scale.square()  # (N, C)
        squares, count = of_channels.sum(1), (lens.cpu() * f).clamp(min=1)
        self.bad.append(bad.cpu())
        self.norms.append(squares.sqrt())
        self.rms.append((squares / (count * c)).sqrt())
        self.by_channel.append((of_channels / count[:, None]).sqrt())
        self.channels = _plus(self.channels, of_channels.sum(0))
        self.times = _plus(self.times, by_time.sum(0).cpu() * scale.square())
        self.times_count = _plus(self.times_count, valid.sum(0).double().cpu() * f * c)
        self.positive += float((x > 0).sum())
        self.count += float(lens.sum()) * f * c
        if c <= WIDEST:
            rows = x[valid].reshape(-1, c)
            rows = rows[:: -(-len(rows) // ROWS) or 1]
            self.rows += len(rows)
            self.total = self.total + rows.sum(0).double().cpu() * scale
            self.products = self.products + (rows.t() @ rows).double().cpu() * scale.square()

    def spectrum(self) -> np.ndarray | None:
        """Return the eigenvalues of the channels' covariance, the largest first; None if there are too many channels."""
        if self.rows < 2:
            return None
        mean = self.total / self.rows
        covariance = (self.products / self.rows - torch.outer(mean, mean)).numpy()
        return np.linalg.eigvalsh(covariance)[::-1].clip(min=0)

    def numbers(self) -> dict[str, float]:
        """Return rms, share of positive values, percentiles of the rms over sequences, channels and time, and the spectrum.

        The spectrum has two values. `top_direction`: share of the variance in its first direction. `effective_rank`: exp
        of the entropy of the eigenvalues' shares (Roy & Vetterli, "The effective rank", 2007).
        """
        channels = (self.channels / max(self.count / len(self.channels), 1.0)).sqrt().numpy()
        times = (self.times / self.times_count)[self.times_count > 0].sqrt().numpy()
        found = {
            "rms": float((self.channels.sum() / max(self.count, 1.0)).sqrt()),
            "positive": self.positive / max(self.count, 1.0),
            "not_finite": float(torch.cat(self.bad).sum()),
        }
        for axis, values in (("sequence", torch.cat(self.rms).numpy()), ("channel", channels), ("time", times)):
            for p, value in zip(PERCENTILES, np.percentile(values, PERCENTILES), strict=True):
                found[f"{axis}_p{p}"] = float(value)
        eigenvalues = self.spectrum()
        if eigenvalues is not None and eigenvalues.sum() > 0:
            share = eigenvalues / eigenvalues.sum()
            found["top_direction"] = float(share[0])
            share = share[share > 0]
            found["effective_rank"] = float(np.exp(-(share * np.log(share)).sum()))
        return found


def finite(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (N, ...) with 0 in place of non-finite values, and the number of these in each sequence (N,)."""
    if bool(x.abs().amax().isfinite()):
        return x, torch.zeros(x.size(0), dtype=torch.int64)
    good = x.isfinite()
    return torch.where(good, x, x.new_zeros(())), (~good).flatten(1).sum(1)


def _plus(a: Tensor, b: Tensor) -> Tensor:
    """Return a + b of two vectors; the shorter one is padded with zeros."""
    length = max(len(a), len(b))
    return nn.functional.pad(a, (0, length - len(a))) + nn.functional.pad(b, (0, length - len(b)))


class Probed:
    """Measurements of one module: activations, the gradient at its output, norms of the gradient at its input."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.output, self.gradient = Spread(), Spread()
        self.passed: list[Tensor] = []  # norm of the gradient at the input: one per batch, (N,)
        self.passed_bad: list[Tensor] = []  # number of its non-finite values

    def amplification(self) -> Tensor:
        """Return the gradient norm at the input / that at the output for every sequence; empty if one is unknown.

        A sequence without a gradient, or with one so small that the ratio would be noise, gets 0.
        """
        if len(self.passed) != len(self.gradient.norms) or not self.passed:
            return torch.zeros(0, dtype=torch.float64)
        at_input, at_output = torch.cat(self.passed), torch.cat(self.gradient.norms)
        return torch.where(at_output > 1e-30, at_input / at_output.clamp(min=1e-30), torch.zeros_like(at_input))


class Probe:
    """A context that measures every module of `model` that runs; call `batch` before each batch.

    A module gets a view of its input, so that the gradient there comes through this module, not a residual path.
    """

    def __init__(self, model: Transducer) -> None:
        self.model = model
        self.modules: dict[str, Probed] = {}
        self.handles: list[Any] = []
        self.ids: list[str] = []
        self.lens: dict[int, Tensor] = {}
        self.encoder_lens = self.token_lens = torch.zeros(0)
        self.calls: dict[str, int] = {}  # in this batch; a module's second call is measured as "name#2"

    def batch(self, ids: list[str], frames: int, input_lens: Tensor, token_lens: Tensor) -> None:
        """Start the next batch: ids, number of frames of the padded features, lengths of features and tokens (N,)."""
        self.ids.extend(ids)
        stages = ((frames, input_lens), (frames - 2, input_lens - 2), ((frames - 3) >> 1, (input_lens - 3) >> 1))
        self.lens = {t: lens.clamp(min=0) for t, lens in (*stages, (subsampled(frames), subsampled(input_lens)))}
        self.encoder_lens = subsampled(input_lens).clamp(min=1)
        self.token_lens = token_lens + 1
        self.calls = {}

    def __enter__(self) -> Probe:
        for name, module in self.model.named_modules():
            if name:
                self.handles.append(module.register_forward_pre_hook(partial(self._before, name)))
                self.handles.append(module.register_forward_hook(partial(self._after, name)))
        return self

    def __exit__(self, *args: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _ordered(self, name: str, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return x as (N, T, F, C) and the valid positions of each sequence (N,); None if x does not have these axes."""
        letters = axes(name, module, x.dim())
        if not letters:
            return None
        x = in_order(x.detach(), letters)
        lens = self.token_lens if name.startswith(BY_TOKEN) else self.lens.get(x.size(1))
        if lens is None or len(lens) != x.size(0):  # else padding would be measured, or frames taken for sequences
            raise ValueError(f"{name}: {tuple(x.shape[:2])} are not the sequences and frames of this batch (axes {letters})")
        return x, lens

    def _key(self, name: str) -> str:
        return name if self.calls[name] == 1 else f"{name}#{self.calls[name]}"

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.calls[name] = self.calls.get(name, 0) + 1
        key, x = self._key(name), args[0] if args else None
        if not (isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()):
            return None

        def measure(g: Tensor) -> None:
            ordered = self._ordered(name, module, g)
            if ordered is not None:
                g, bad = finite(ordered[0].float())
                self.modules[key].passed.append(_norms(g))
                self.modules[key].passed_bad.append(bad.cpu())

        own = x.view_as(x)
        own.register_hook(measure)
        return (own, *args[1:])

    def _after(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        ordered = self._ordered(name, module, x) if isinstance(x, Tensor) and x.is_floating_point() else None
        if ordered is None:
            return
        probed = self.modules.setdefault(self._key(name), Probed(self._key(name)))
        probed.output.add(*ordered)

        def measure(g: Tensor) -> None:
            ordered = self._ordered(name, module, g)
            assert ordered is not None
            probed.gradient.add(*ordered)

        if x.requires_grad:
            x.register_hook(measure)


def recurrent_rms(model: Transducer) -> dict[str, float]:
    """Return the rms of each encoder layer's scaled recurrent matrix, by the name of the layer's recurrent module."""
    return {
        name: float((module.weight_hh_l0 * module.weight_hh_l0_scale.exp()).detach().square().mean().sqrt())
        for name, module in model.named_modules()
        if name.startswith("encoder.encoder.") and hasattr(module, "weight_hh_l0")
    }


def _norms(x: Tensor) -> Tensor:
    """Return the root of the sum of squares of each sequence of x (N, ...), in float64 on the CPU."""
    scale = x.abs().amax().clamp(min=1e-30)
    return (x / scale).flatten(1).square().sum(1).double().sqrt().cpu() * float(scale)
