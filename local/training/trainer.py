"""The training loop: batches in, checkpoints and numbers out. Knows the run; the model knows only tensors."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import check_finite, load_weights, newest_readable, provenance, remove_old, save_file
from local.common.allocator import release_free_memory
from local.common.atomic import remove_abandoned
from local.common.errors import TrainingDiverged, UserError
from local.common.processes import Processes
from local.common.progress import Progress
from local.config.schema import Config
from local.data.batch import Batch
from local.data.datamodule import AsrDataModule
from local.training.memory_plan import choose_max_duration
from local.training.random_state import random_state, seed_apart, set_random_state
from local.training.resume_checks import changes, check_same_run, flat, seconds_at_once
from local.training.step import StepGradient, make_scaler
from local.training.telemetry import Telemetry
from model.average import RunningAverage
from model.build import build_model
from model.encoder.subsampling import subsampled
from model.optim import Eden, make_optimizer
from model.transducer import pruned_scale

import torch
from torch import Tensor

COUNTS = ("epoch", "batch", "step", "bad_steps")
AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Trainer:
    """One training run in `exp_dir`; goes on from its newest readable checkpoint where there is one.

    Several `processes` run the same steps on their shares of the data; files are written and read out by the first.
    Dropout, balancers and bypassed layers are drawn by each process for itself.
    """

    def __init__(
        self, cfg: Config, data: AsrDataModule, exp_dir: Path, device: torch.device, processes: Processes | None = None
    ) -> None:
        self.processes = processes or Processes()
        self.first = self.processes.rank == 0
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
        self.gradient = StepGradient(self.model, self.scaler, self.processes, device)
        if not self.first:
            seed_apart(cfg.train.seed, self.processes.rank, 0)
        self.epoch, self.batch, self.step = 1, 0, 0  # epoch from 1; batches done in it; batches done in all
        self.bad_steps = 0
        saved = self._resume()
        if len(set(self.processes.gather(self.step))) > 1:
            raise UserError(f"the processes found different checkpoints in {self.folder}: is it one folder for all machines?")
        data.max_duration = self.max_duration = choose_max_duration(
            cfg, saved, data, self.model, lambda part: self._losses(part, monitor=True, warmup=2.0), self.processes, device
        )
        self.masks: list[tuple[int, list[str], Tensor]] = []  # step, utterances, the filters' masks: for the log
        self.telemetry = Telemetry(exp_dir, self.model, self.step) if self.first else None
        if self.telemetry is not None:
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
        if self.telemetry is not None:
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
        progress = Progress(loader.num_cuts, f"epoch {self.epoch}/{train.num_epochs}", "utt") if self.first else None
        with progress or nullcontext():
            asked = time.perf_counter()
            for batch in loader:
                waited = time.perf_counter() - asked
                utterances = self.train_pass(batch)
                if self.telemetry is not None and progress is not None:
                    self.telemetry.add_time(waited, time.perf_counter() - asked)
                    progress.update(utterances, self.telemetry.note)
                asked = time.perf_counter()
                if utterances == 0:
                    continue
                if self.step % train.log_every == 0:
                    self._flush()
                    release_free_memory()
                if train.valid_every and self.step % train.valid_every == 0:
                    self.validate()
                if train.save_every and self.step % train.save_every == 0:
                    self.save(self.folder / f"step-{self.step}.pt")
                    self._tidy()
                if self._at_limit():
                    break
        skipped = sum(self.processes.gather(loader.skipped))
        if skipped:
            print(f"epoch {self.epoch}: {skipped} utterances could not be loaded and were left out")
        self._flush()

    def train_pass(self, batch: Batch) -> int:
        """Forward and backward over a batch, and the optimiser's step where it is the last of a step.

        Returns the utterances of the step that was made, over all processes; 0 where none was.
        """
        monitor = self.step % 10 == 0
        scales = (self.cfg.loss.simple_scale, pruned_scale(self.warmup))
        self.gradient.add(batch, lambda part: self._losses(part, monitor), scales)
        if not batch.ends_step:
            return 0
        utterances = self._finish_step()
        self.gradient.clear()
        return utterances

    def _finish_step(self) -> int:
        """The optimiser's step. One whose losses or gradients are not finite is skipped, by all processes, and reported."""
        sums = self.gradient.total()
        self.batch += 1
        if all(p.grad is None for p in self.gradient.params):
            return 0  # none of its utterances could be loaded
        self.scaler.unscale_(self.optimizer)
        norms = self._gradient_norms()
        self.step += 1
        # The one wait for a GPU in a step, after all its work is queued.
        loss, *_, frames, input_frames, utterances, norm = torch.cat([sums, norms.norm().double().unsqueeze(0)]).tolist()
        finite = math.isfinite(loss + norm)
        if finite or (self.scaler.is_enabled() and math.isfinite(loss)):
            self.scaler.step(self.optimizer)  # fp16's scale may be too large: it skips the step itself and lowers it
        else:
            self._skip_step()
        self.scaler.update()
        self.schedule.step_batch()
        self.average.update(self.model, self.step)
        if finite:
            passes = self.gradient.passes
            self.masks += [(self.step, p.batch.ids, p.masks) for p in passes if p.masks is not None]
            if self.telemetry is not None:
                outside = [p.losses["outside"] for p in passes if "outside" in p.losses]
                together = torch.cat(outside) if outside else None
                self.telemetry.add(list(sums[:3]), norms, together, int(frames), int(input_frames))
        return int(utterances)

    def _flush(self) -> None:
        """A row of the log."""
        self._collect_masks()
        if self.telemetry is not None:
            self.telemetry.flush(self.epoch, self.step, self.schedule.get_last_lr()[0])

    def _collect_masks(self) -> None:
        """Bring the masks of all processes to the log of the first."""
        for masks in self.processes.gather([(step, ids, m.cpu()) for step, ids, m in self.masks]):
            for one in masks:
                if self.telemetry is not None:
                    self.telemetry.add_masks(*one)
        self.masks = []

    def _losses(self, batch: Batch, monitor: bool = False, warmup: float | None = None) -> dict[str, Tensor]:
        precision = self.cfg.train.precision
        dtype = AUTOCAST_TYPES.get(precision, torch.bfloat16)
        with torch.autocast(self.device.type, dtype=dtype, enabled=precision != "float32"):
            return self.model(
                batch.inputs.to(self.device, non_blocking=True),
                batch.input_lens.to(self.device, non_blocking=True),
                batch.tokens.to(self.device, non_blocking=True),
                batch.token_lens.to(self.device, non_blocking=True),
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

    def _skip_step(self) -> None:
        """Name and save the utterances behind a non-finite step; give up after train.max_bad_steps of them."""
        self.bad_steps += 1
        what, ids, paths = self.gradient.save_bad(self.exp_dir / "bad", f"step-{self.step}")
        names, path = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else ""), ", ".join(paths)
        print(f"warning: step {self.step} skipped: {what} not finite for {names}; saved in {path}")
        if self.bad_steps > self.cfg.train.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_steps} steps with a non-finite loss or gradient (train.max_bad_steps is "
                f"{self.cfg.train.max_bad_steps}); the last: {names}"
            )

    @torch.no_grad()
    def validate(self) -> None:
        """Losses on the dev parts, to the log; the model goes back to training mode."""
        self.model.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self.device)  # simple and pruned loss, frames
        for batch in self.data.valid_dataloader():
            losses = self._losses(batch, warmup=2.0)
            totals[:2] += torch.stack([losses["simple"].sum(), losses["pruned"].sum()])
            totals[2] += int(subsampled(batch.input_lens).sum())
        self.model.train()
        simple, pruned, frames = self.processes.sum(totals).tolist()
        if frames == 0:
            raise UserError(f"{self.data.data_dir}: the dev parts hold no utterance")
        if self.telemetry is not None:
            self.telemetry.add_valid(self.epoch, self.step, simple / frames, pruned / frames)

    def save(self, path: Path) -> None:
        """Write everything that is needed to go on, bit for bit, from here. All processes call it, the first writes."""
        self._collect_masks()
        rngs = self.processes.gather(random_state(self.device))
        if self.telemetry is None:
            return
        progress = {name: getattr(self, name) for name in (*COUNTS, "max_duration")}
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "telemetry": self.telemetry.state_dict(),
            "progress": progress,
            "rng": {**rngs[0], "others": rngs[1:]},
            **self.origin,
        }
        save_file(content, path)

    def _resume(self) -> dict[str, Any]:
        """Take the newest readable checkpoint of the folder, if there is one; returns what it holds."""
        if self.first:
            for path in [p for folder in (self.exp_dir, self.folder, self.exp_dir / "bad") for p in remove_abandoned(folder)]:
                print(f"removed {path}, left unfinished by a run that was killed")
        found = newest_readable(self.folder)
        if found is None:
            return {}
        path, saved = found
        try:
            self._restore(path, saved)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:  # whatever the values are
            why = f"{type(e).__name__}: {str(e).strip()[:200]}"
            raise UserError(f"{path}: damaged: training cannot go on from it ({why}); remove it to go on without it") from None
        return saved

    def _restore(self, path: Path, saved: dict[str, Any]) -> None:
        """Go on from what `save` wrote. Raises `UserError` for another run's, anything else where values are damaged."""
        check_same_run(saved, self.origin, path)
        load_weights(self.model, saved["model"], path)
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        check_finite(flat(saved), path)
        if saved["average"]["state"].keys() != saved["model"].keys():
            raise ValueError("the average is another model's")
        progress = [saved["progress"][name] for name in COUNTS]
        if not all(type(value) is int and value >= 0 for value in progress) or not 0 < seconds_at_once(saved):
            raise ValueError(f"progress is {saved['progress']}")
        self.epoch, self.batch, self.step, self.bad_steps = progress
        self._resume_rng(saved["rng"], path)
        print(f"going on from {path}: {self.step} batches done, now epoch {self.epoch}")
        if self.first:
            for key, before, now in changes(saved, self.origin["config"]):
                print(f"warning: {key} was {before}, is {now} from here on; --force trains anew", file=sys.stderr)
        if self.epoch > self.cfg.train.num_epochs or self._at_limit():
            print("nothing is left to train: train.num_epochs or train.max_steps is reached")

    def _resume_rng(self, saved: dict[str, Any], path: Path) -> None:
        """Each process goes on with its own random numbers."""
        states = [saved, *saved.get("others", [])]
        rank, size = self.processes.rank, self.processes.size
        if len(states) != size:
            print(f"warning: {path} was written by {len(states)} processes, now there are {size}: dropout differs from here on")
        if rank >= len(states):
            seed_apart(self.cfg.train.seed, rank, self.step)
        else:
            set_random_state(states[rank], self.device)

    def _tidy(self) -> None:
        """Keep the newest epochs that averaging or train.keep_last asks for, and two step checkpoints."""
        keep, average = self.cfg.train.keep_last, self.cfg.average
        if keep > 0 and self.first:
            epochs = max(keep, average.num + 1)
            remove_old(self.folder, epochs=epochs, steps=average.num + 1 if average.unit == "step" else 2)
