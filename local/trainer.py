"""The training loop: batches in, checkpoints and numbers out. Knows the run; the model knows only tensors."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from local.checkpoint import checkpoints, load_weights, newest_readable, provenance, save_file
from local.datamodule import AsrDataModule, Batch
from local.errors import UserError
from local.progress import Progress
from local.schema import Config
from local.telemetry import Telemetry
from model.average import RunningAverage
from model.build import build_model
from model.encoder.subsampling import subsampled
from model.optim import Eden, make_optimizer
from model.transducer import pruned_scale

OTHER_STAGES = ("decode.", "average.", "lm.")  # sections whose keys do not change this training
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One training run in `exp_dir`; goes on from its newest readable checkpoint where there is one."""

    def __init__(self, cfg: Config, data: AsrDataModule, exp_dir: Path, device: torch.device) -> None:
        self.cfg, self.data, self.exp_dir, self.device = cfg, data, exp_dir, device
        self.folder = exp_dir / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.origin = provenance(cfg, data.tokenizer)
        torch.manual_seed(cfg.train.seed)
        self.model = build_model(cfg, data.tokenizer.vocab_size).to(device)
        self.average = RunningAverage(self.model, cfg.train.average_period)
        self.optimizer = make_optimizer(self.model.parameters(), cfg.optim)
        self.schedule = Eden(self.optimizer, cfg.optim.lr_batches, cfg.optim.lr_epochs)
        if cfg.train.precision == "fp16" and device.type != "cuda":
            raise UserError("key 'train.precision' is fp16: that needs a GPU; bf16 and float32 run on a CPU")
        self.scaler = make_scaler(enabled=cfg.train.precision == "fp16")
        self.epoch, self.batch, self.step = 1, 0, 0  # epoch from 1; batches done in it; batches done in all
        self.bad_steps = 0
        saved = self._resume()
        self.telemetry = Telemetry(exp_dir, self.model, self.step)
        self.telemetry.load_state_dict(saved.get("telemetry", {}))

    @property
    def warmup(self) -> float:
        """Batches done / warm-up batches."""
        return self.step / self.cfg.train.warm_step

    def run(self) -> None:
        """Train to train.num_epochs or train.max_steps; a checkpoint follows every epoch."""
        train = self.cfg.train
        while self.epoch <= train.num_epochs and not self._at_limit():
            self._run_epoch()
            if self._at_limit():
                break
            self.validate()
            self._advance_epoch()
        if self._at_limit():
            self.save(self.folder / f"step-{self.step}.pt")
        self.telemetry.close()

    def _at_limit(self) -> bool:
        return 0 < self.cfg.train.max_steps <= self.step

    def _advance_epoch(self) -> None:
        done = self.epoch
        self.epoch, self.batch = done + 1, 0
        self.save(self.folder / f"epoch-{done}.pt")
        self._tidy()

    def _run_epoch(self) -> None:
        """The rest of the present epoch."""
        train = self.cfg.train
        self.model.train()
        self.schedule.step_epoch(self.epoch - 1)
        loader = self.data.train_dataloader(self.epoch, skip_batches=self.batch)
        with Progress(loader.num_cuts, f"epoch {self.epoch}/{train.num_epochs}", "utt") as progress:
            asked = time.perf_counter()
            for batch in loader:
                waited = time.perf_counter() - asked
                self.train_step(batch)
                self.telemetry.add_time(waited, time.perf_counter() - asked)
                progress.update(len(batch["ids"]), self.telemetry.note)
                if self.step % train.log_every == 0:
                    self.telemetry.flush(self.epoch, self.step, self.schedule.get_last_lr()[0])
                if train.valid_every and self.step % train.valid_every == 0:
                    self.validate()
                if train.save_every and self.step % train.save_every == 0:
                    self.save(self.folder / f"step-{self.step}.pt")
                    self._tidy()
                if self._at_limit():
                    break
                asked = time.perf_counter()
        if loader.skipped:
            print(f"epoch {self.epoch}: {loader.skipped} utterances could not be loaded and were left out")
        self.telemetry.flush(self.epoch, self.step, self.schedule.get_last_lr()[0])

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, optimiser; a step whose losses or gradients are not finite is skipped and reported."""
        losses = self._losses(batch, monitor=self.step % 10 == 0)
        simple, pruned = losses["simple"].sum(), losses["pruned"].sum()
        scale = pruned_scale(self.warmup)
        loss = self.cfg.loss.simple_scale * simple
        if scale > 0:
            loss = loss + scale * pruned
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norms = self._gradient_norms()
        self.batch += 1
        self.step += 1
        # The one wait for a GPU in a step, after all its work is queued.
        finite = bool(torch.isfinite(loss.detach() + norms.norm()))
        if finite:
            self.scaler.step(self.optimizer)
        elif self.scaler.is_enabled() and bool(torch.isfinite(loss.detach())):
            self.scaler.step(self.optimizer)  # fp16's scale is too large: skips the step itself and lowers it
        else:
            self._skip_step(batch, losses)
        self.scaler.update()
        self.schedule.step_batch()
        self.average.update(self.model, self.step)
        if finite:
            frames = subsampled(batch["input_lens"]).sum()
            self.telemetry.add(self.step, (loss, simple, pruned), norms, losses.get("outside"), int(frames), batch)

    def _losses(self, batch: Batch, monitor: bool = False, warmup: float | None = None) -> dict[str, Tensor]:
        precision = self.cfg.train.precision
        dtype = AUTOCAST_TYPES.get(precision, torch.bfloat16)
        with torch.autocast(self.device.type, dtype=dtype, enabled=precision != "float32"):
            return self.model(
                batch["inputs"].to(self.device, non_blocking=True),
                batch["input_lens"].to(self.device, non_blocking=True),
                batch["tokens"].to(self.device, non_blocking=True),
                batch["token_lens"].to(self.device, non_blocking=True),
                warmup=self.warmup if warmup is None else warmup,
                monitor=monitor,
            )

    def _gradient_norms(self) -> Tensor:
        """The gradient's norm by parameter, before it is clipped (gradient.control: clip). (parameters,)"""
        params = list(self.model.parameters())
        norms = torch.stack(torch._foreach_norm([p.grad if p.grad is not None else torch.zeros_like(p) for p in params]))
        if self.cfg.gradient.control == "clip":
            torch.nn.utils.clip_grad_norm_(params, self.cfg.gradient.clip_norm)
        return norms

    def _skip_step(self, batch: Batch, losses: dict[str, Tensor]) -> None:
        """Name and save the utterances behind a non-finite step; give up after train.max_bad_steps of them."""
        self.bad_steps += 1
        bad = ~torch.isfinite(losses["simple"] + losses["pruned"]).cpu()
        rows = bad.nonzero().flatten().tolist()
        what = "loss" if rows else "gradient"
        rows = rows or list(range(len(bad)))
        path = self.exp_dir / "bad" / f"step-{self.step}.pt"
        keep = {k: batch[k][rows].clone() for k in ("inputs", "input_lens", "tokens", "token_lens")}
        save_file({"model": {}, "ids": [batch["ids"][i] for i in rows], **keep}, path)
        names = ", ".join(batch["ids"][i] for i in rows[:5]) + (", ..." if len(rows) > 5 else "")
        print(f"warning: step {self.step} skipped: {what} not finite for {names}; saved in {path}")
        if self.bad_steps > self.cfg.train.max_bad_steps:
            raise UserError(
                f"{self.bad_steps} steps with a non-finite loss or gradient (train.max_bad_steps is "
                f"{self.cfg.train.max_bad_steps}); the last: {names}"
            )

    @torch.no_grad()
    def validate(self) -> None:
        """Losses on the dev parts, to the log; the model goes back to training mode."""
        self.model.eval()
        totals: Tensor | float = 0.0
        frames = 0
        for batch in self.data.valid_dataloader():
            losses = self._losses(batch, warmup=2.0)
            totals = totals + torch.stack([losses["simple"].sum(), losses["pruned"].sum()])
            frames += int(subsampled(batch["input_lens"]).sum())
        self.model.train()
        if frames == 0:
            raise UserError(f"{self.data.data_dir}: the dev parts hold no utterance")
        simple, pruned = (totals / frames).tolist()  # type: ignore[union-attr]
        self.telemetry.add_valid(self.epoch, self.step, simple, pruned)

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on, bit for bit, from here."""
        rng: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        progress = {"epoch": self.epoch, "batch": self.batch, "step": self.step, "bad_steps": self.bad_steps}
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "telemetry": self.telemetry.state_dict(),
            "progress": progress,
            "rng": rng,
            **self.origin,
        }
        save_file(content, path)

    def _resume(self) -> dict[str, Any]:
        """Take the newest readable checkpoint of the folder, if there is one; returns what it holds."""
        found = max(newest_readable(self.folder), key=lambda pair: pair[1]["progress"]["step"], default=None)
        if found is None:
            return {}
        path, saved = found
        if saved["tokens_hash"] != self.origin["tokens_hash"]:
            raise UserError(f"{path} was trained with other tokens than {self.data.data_dir}'s; use another --exp-dir")
        if saved["config"]["model"] != self.origin["config"]["model"]:
            raise UserError(f"{path} holds a model of another configuration; use another --exp-dir")
        load_weights(self.model, saved["model"], path)
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        for name, value in saved["progress"].items():
            setattr(self, name, value)
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in saved["rng"]:
            torch.cuda.set_rng_state(saved["rng"]["cuda"].cpu(), self.device)
        print(f"going on from {path}: {self.step} batches done, now epoch {self.epoch}")
        before, now = _flat(saved["config"]), _flat(self.origin["config"])
        for key in [k for k in now if k in before and before[k] != now[k] and not k.startswith(OTHER_STAGES)]:
            print(f"warning: {key} was {before[key]}, is {now[key]} from here on; --force trains anew", file=sys.stderr)
        if self.epoch > self.cfg.train.num_epochs or self._at_limit():
            print("nothing is left to train: train.num_epochs or train.max_steps is reached")
        return saved

    def _tidy(self) -> None:
        """Keep the newest epochs that averaging or train.keep_last asks for, and two step checkpoints."""
        keep = self.cfg.train.keep_last
        if keep == 0:
            return
        keep = max(keep, self.cfg.average.num + 1)
        for _, path in checkpoints(self.folder, "epoch")[keep:]:
            path.unlink()
        steps = self.cfg.average.num + 1 if self.cfg.average.unit == "step" else 2
        for _, path in checkpoints(self.folder, "step")[steps:]:
            path.unlink()


def make_scaler(enabled: bool) -> Any:
    """The gradient scaler of fp16, under the name that this torch gives it."""
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cuda", enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat
