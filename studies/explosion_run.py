"""One training of studies/explosion.py: long sequences, a narrow model, every LSTM watched at every step.

Weights, loss and optimiser are the recipe's; only the sizes are smaller, and the learning rate is constant.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from local.config import config_from_dict, to_dict
from local.config.schema import Config
from local.training.losses import forward_losses
from model.build import build_model
from model.encoder.lstm import RecurrentLayer
from model.encoder.subsampling import subsampled
from model.layers.gradient_filter import GradientFilter
from model.optim import make_optimizer
from model.transducer import Transducer, pruned_scale, training_loss
from studies.explosion_data import BINS, Joined, Setting
from studies.explosion_measure import LayerGradients, growth, largest_singular_values, lstms, watched
from studies.short_training import Row, held_out_losses

import numpy as np
import torch
from torch import Tensor

NARROW = (
    *("model.encoder.num_layers=12", "model.encoder.d_model=32", "model.encoder.rnn_hidden_size=64"),
    *("model.encoder.dim_feedforward=64", "model.decoder.dim=32", "model.joiner.dim=32", f"features.num_mel_bins={BINS}"),
    *("train.warm_step=40", "train.warm_share=0", "gradient.control=none"),
)
EVERY = 20  # steps between two measurements of the Jacobians
RISE = 10.0  # they are measured as well if an LSTM amplifies a gradient this many times as much as at any measurement before
DAMPED = 25.0  # a sequence's gradient / the batch's median at which the published filter halves it
EXPLODED = 1000.0  # a sequence whose gradient is this many times the median, or what one LSTM gets, has exploded
FEWEST = 3  # steps with such a sequence that make an explosion
LOOK = 0.5  # share of a run's steps after which it stops if it shows nothing
PROMISING = {"largest_ratio": 5.0, "largest_amplification": 50.0}  # ... that is, if neither was as large in any step


@dataclass
class Result:
    """The row of map.csv, and rows for each step, for each layer at a measurement of the Jacobians, and for each sequence."""

    summary: Row = field(default_factory=dict)
    steps: list[Row] = field(default_factory=list)
    layers: list[Row] = field(default_factory=list)
    sequences: list[Row] = field(default_factory=list)


class WithoutResidual(RecurrentLayer):
    """A layer that does not add its input: y = dropout(lstm(x)); y = norm(balancer(dropout(ff(y)))). No layer dropout."""

    def forward(
        self, x: Tensor, h: Tensor, c: Tensor, warmup: float, from_zeros: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run x (T, N, C) as `RecurrentLayer` does."""
        params = self.lstm.scaled_parameters()
        if self.gradient_filter is not None:
            x, params = self.gradient_filter(x, params)
        y, h, c = self.lstm(x, h, c, params)
        y = self.dropout(self.feed_forward(self.dropout(y)))
        return self.norm_final(self.balancer(y)), h, c


def setting_config(cfg: Config, setting: Setting) -> Config:
    """Return the configuration of a run: the experiment's, a narrow model of 12 layers, the setting's keys."""
    keys = [*NARROW, *setting.keys, f"train.seed={setting.seed}"]
    return config_from_dict(to_dict(cfg), keys, where=f"setting '{setting.name}'")


def initial_model(cfg: Config, setting: Setting, vocab_size: int) -> Transducer:
    """Return the model of the setting's seed in training mode: its recurrent matrices scaled, perhaps without residuals."""
    torch.manual_seed(setting.seed)
    model = build_model(cfg, vocab_size)
    with torch.no_grad():
        for lstm in lstms(model):
            lstm.get_parameter("weight_hh_l0_scale").add_(math.log(setting.recurrent))
    for layer in model.encoder.encoder.layers.children():
        if not setting.residual:
            layer.__class__ = WithoutResidual
    return model.train()


class Training:
    """The model, optimiser and batches of one run; `step` makes a step and adds its rows to `result`."""

    def __init__(self, cfg: Config, speech: Joined, setting: Setting) -> None:
        self.cfg, self.setting = setting_config(cfg, setting), setting
        self.model = initial_model(self.cfg, setting, speech.vocab_size)
        self.optimizer = make_optimizer(self.model.parameters(), self.cfg.optim)
        self.batches = speech.batches(setting)
        self.filters = [m for m in self.model.modules() if isinstance(m, GradientFilter)]
        self.by_layer = [list(layer.parameters()) for layer in self.model.encoder.encoder.layers.children()]
        self.result = Result()
        self.measured = 1.0  # largest amplification in a step with a measurement

    def step(self, number: int) -> Row:
        """Make a step; return its row."""
        batch, warmup = next(self.batches), number / self.cfg.train.warm_step
        frames = subsampled(batch.input_lens)
        self.optimizer.zero_grad(set_to_none=True)
        with watched(self.model) as watch:
            losses = forward_losses(self.model, batch, warmup=warmup).summed()
            loss = training_loss(losses, self.cfg.loss, pruned_scale(warmup))
            loss.backward()
        found = watch.gradients(frames)
        outliers = _outliers(found)
        if number % EVERY == 0 or outliers["largest_amplification"] > RISE * self.measured:
            self._measure(number, [x.detach()[: int(frames.min())] for x in watch.inputs])
            self.measured = max(self.measured, outliers["largest_amplification"])
        row: Row = {"step": number, "loss": float(loss.detach()) / int(frames.sum()), **outliers, **self._masks()}
        norms = [_norm([p.grad for p in parameters]) for parameters in self.by_layer]
        whole = _norm([p.grad for p in self.model.parameters()])
        moved = self._update(whole)
        row |= {"gradient_norm": whole, **{f"gradient_norm_layer_{i}": norm for i, norm in enumerate(norms)}}
        row |= {f"step_layer_{i}": size for i, size in enumerate(moved)}
        self.result.steps.append(row)
        by_sequence = {(i, n): rms for i, layer in enumerate(found.at_input.tolist()) for n, rms in enumerate(layer)}
        self.result.sequences += [
            {"step": number, "layer": i, "sequence": n, "gradient_rms": rms} for (i, n), rms in by_sequence.items()
        ]
        return row

    def _update(self, whole: float) -> list[float]:
        """Make the optimiser's step; return by how much it moved the weights of each layer: the rms, in learning rates."""
        if not math.isfinite(whole):  # the recipe leaves such a step out too
            return [0.0] * len(self.by_layer)
        if self.cfg.gradient.control == "clip":
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.gradient.clip_norm)
        before = [[p.detach().clone() for p in parameters] for parameters in self.by_layer]
        self.optimizer.step()
        moved = []
        for old, new in zip(before, self.by_layer, strict=True):
            count = sum(p.numel() for p in new)
            moved.append(_norm([p.detach() - q for p, q in zip(new, old, strict=True)]) / math.sqrt(count) / self.cfg.optim.lr)
        return moved

    def _masks(self) -> Row:
        """Return the smallest and mean mask of the filters, and the smallest factor that one gave its layer's parameters."""
        masks = torch.stack([m.mask for m in self.filters if m.mask is not None]) if self.filters else torch.ones(1, 1)
        factor = 1 / (1 / masks).mean(dim=1)
        return {"smallest_mask": float(masks.min()), "mean_mask": float(masks.mean()), "smallest_factor": float(factor.min())}

    def _measure(self, number: int, inputs: list[Tensor]) -> None:
        modules, sigmas = lstms(self.model), largest_singular_values(self.model)
        found = growth(modules, inputs)
        for i, sigma in enumerate(sigmas):
            rates = {"rate_median": float(found.rate[i].median()), "rate_max": float(found.rate[i].max())}
            self.result.layers.append(
                {"step": number, "layer": i, "sigma": sigma, **rates, "gain_max": float(found.gain[i].max())}
            )


def _outliers(found: LayerGradients) -> Row:
    """Return a step's largest ratio of a sequence to the batch's median, and largest amplification by an LSTM, with layers."""
    ratios = found.at_input / found.at_input.median(dim=1, keepdim=True).values.clamp(min=1e-30)
    row: Row = {"share_damped": float((ratios > DAMPED).float().mean())}
    for name, values in (("ratio", ratios), ("amplification", found.at_input / found.at_output.clamp(min=1e-30))):
        by_layer = values.nan_to_num(nan=math.inf).max(dim=1).values
        row |= {f"largest_{name}": float(by_layer.max()), f"{name}_layer": int(by_layer.argmax())}
    return row


def run(cfg: Config, speech: Joined, setting: Setting, limit: float) -> Result:
    """Make a run; it ends early after `limit` seconds of CPU time, a non-finite loss, or half of its steps without a sign."""
    started = time.process_time()
    training = Training(cfg, speech, setting)
    steps, ended = training.result.steps, "steps"
    for number in range(setting.steps):
        row = training.step(number)
        if not math.isfinite(row["loss"]):
            ended = "loss not finite"
            break
        if time.process_time() - started > limit:
            ended = "time"
            break
        if number + 1 >= LOOK * setting.steps and not promising(steps):
            ended = "nothing seen"
            break
    values = {**asdict(setting), "keys": " ".join(setting.keys), "control": training.cfg.gradient.control}
    values |= {"ended": ended, **summary(training.result)}
    if math.isfinite(steps[-1]["loss"]):
        held_out = held_out_losses(training.model, speech.held_out(setting.seconds), training.cfg.loss)
        values |= {f"dev_{name}": value for name, value in held_out.items()}
    training.result.summary = {**values, "cpu_seconds": time.process_time() - started}
    return training.result


def promising(steps: list[Row]) -> bool:
    """Return whether any step has a sequence that may explode later."""
    return any(row[key] >= least for row in steps for key, least in PROMISING.items())


def summary(result: Result) -> Row:
    """Return what a run's rows show."""
    steps = result.steps
    exploded = [r["step"] for r in steps if max(r["largest_ratio"], r["largest_amplification"]) > EXPLODED]
    values: dict[str, Any] = {"trained": len(steps), "found": len(exploded) >= FEWEST, "steps_exploded": len(exploded)}
    values["steps_damped"] = sum(r["largest_ratio"] > DAMPED for r in steps)
    for name in ("ratio", "amplification"):
        worst = max(steps, key=lambda r: r[f"largest_{name}"])
        values |= {f"largest_{name}": worst[f"largest_{name}"], f"{name}_layer": worst[f"{name}_layer"]}
        values[f"{name}_step"] = worst["step"]
    finite = [r["gradient_norm"] for r in steps if math.isfinite(r["gradient_norm"])]
    values |= {"largest_gradient_norm": max(finite, default=math.inf), "smallest_mask": min(r["smallest_mask"] for r in steps)}
    for name in ("sigma", "rate_median", "rate_max", "gain_max"):
        values[f"largest_{name}"] = max(r[name] for r in result.layers)
    values["loss"] = float(np.mean([r["loss"] for r in steps[-10:]]))
    return values


def _norm(tensors: list[Tensor | None]) -> float:
    found = [g.double().norm() for g in tensors if g is not None]
    return float(torch.stack(found).norm()) if found else 0.0
