"""The training loop: batches in, checkpoints and numbers out."""

from __future__ import annotations

import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import (
    check_finite,
    check_trained,
    load_weights,
    newest_readable,
    provenance,
    remove_old,
    save_file,
    weights_hash,
)
from local.artifacts.new_model import new_model
from local.common.allocator import release_free_memory
from local.common.atomic import remove_abandoned
from local.common.errors import TrainingDiverged, UserError, described, first_of
from local.common.processes import Processes
from local.common.progress import Progress
from local.common.signals import held_back
from local.config.keys import leaves
from local.config.schema import Config
from local.data.batch import Batch, check_lost
from local.data.datamodule import AsrDataModule, Batches
from local.data.feature_floor import KEY, saved_floor
from local.training.initial_weights import freeze, start_from
from local.training.loggers import check_logger, make_logger
from local.training.mask_log import MaskLog
from local.training.memory_plan import choose_max_duration
from local.training.random_state import random_state, restore_random_state, seed_apart
from local.training.resume_checks import check_same_data, check_same_run, warn_of_changes, write_config
from local.training.run_length import RunLength, warmed_up
from local.training.saved_state import COUNTS, check_saved_state
from local.training.step import StepGradient, StepSums, make_scaler
from local.training.telemetry import Telemetry
from local.training.validation import Validator, last, left_out
from model.average import RunningAverage
from model.optim import Eden, make_optimizer

import torch

DAMAGED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)  # raised for damaged values of a checkpoint
MONITOR_EVERY = 10  # steps between measurements of the posterior mass outside the pruning bounds


class Trainer:
    """One training run in `exp_dir`, resumed from its newest readable checkpoint.

    Several `processes` make the same steps, each on its micro-batches, with its random numbers; the first one writes files.
    """

    def __init__(
        self, cfg: Config, data: AsrDataModule, exp_dir: Path, device: torch.device, processes: Processes | None = None
    ) -> None:
        """Build the model on `device` and restore the checkpoint. Raises `UserError` if that cannot be resumed."""
        self.processes = processes or Processes()
        self.first = self.processes.rank == 0
        self.cfg, self.data, self.exp_dir, self.device = cfg, data, exp_dir, device
        if self.first:
            check_logger(cfg.train.logger)
        self.folder = exp_dir / "checkpoints"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.origin = provenance(cfg, data.tokenizer)
        torch.manual_seed(cfg.train.seed)
        self.model = new_model(cfg, data.tokenizer.vocab_size).to(device)
        freeze(self.model, cfg.train.freeze)
        self.average = RunningAverage(self.model, cfg.train.average_period)
        self.optimizer = make_optimizer(self.model.parameters(), cfg.optim)
        self.schedule = Eden(self.optimizer, cfg.optim.lr_batches, cfg.optim.lr_epochs)
        self.scaler = make_scaler(cfg.train.precision, device)
        self.masks = MaskLog(self.model, exp_dir / "outliers.tsv", self.processes)
        self.gradient = StepGradient(self.model, cfg, self.scaler, self.masks, self.processes, device)
        if not self.first:
            seed_apart(cfg.train.seed, self.processes.rank, 0)
        self.epoch, self.batch, self.step, self.bad_steps = 1, 0, 0, 0  # epoch from 1; steps done in it; in all; bad ones
        self.resumed: tuple[Path, dict[str, Any]] | None = None  # the checkpoint, and what it says of its data and progress
        saved = self._resume()
        if len(set(self.processes.gather(self.step))) > 1:
            raise UserError(f"the processes found different checkpoints in {self.folder}; all machines must share this folder")
        if not saved and cfg.train.init is not None:
            self._start_from_another()
        data.max_duration = self.max_duration = choose_max_duration(cfg, saved, data, self.processes, device)
        self.length = RunLength(cfg, data, saved)
        self.warm_batches = self.length.warm_batches
        self.validator = Validator(self.model, cfg, data, self.processes, device)
        self.telemetry = None
        if self.first:
            logger = make_logger(cfg.train.logger, exp_dir, dict(leaves(self.origin["config"])), self.step)
            self.telemetry = Telemetry(exp_dir, self.model, self.step, logger)

    @property
    def warmup(self) -> float:
        """Return batches done / batches of the warm-up."""
        return warmed_up(self.step, self.warm_batches)

    def run(self) -> None:
        """Train to train.num_epochs or train.max_steps; a checkpoint follows every epoch.

        Raises `UserError` if the warm-up would swallow the training, an epoch has no step, or the checkpoint is within an
        epoch of other data.
        """
        if self._finished():
            print("nothing is left to train: train.num_epochs or train.max_steps is reached")
            self._name_other_data()
        else:
            self.length.check_warm_up(self.first)
            self._take_data()
            if self.step == 0 and self.first:  # later, `save` writes it: it describes the newest checkpoint
                self._write_config()
        self.length.begin(self.step)
        while not self._finished():
            self._run_epoch()
            if self._at_limit():
                self.save(self.folder / f"step-{self.step}.pt")
            else:
                self.validate()
                self.epoch, self.batch = self.epoch + 1, 0
                self.save(self.folder / f"epoch-{self.epoch - 1}.pt")
                self._tidy()
        if self.telemetry is not None:
            self.telemetry.close()

    def _name_other_data(self) -> None:
        """Warn if the data of a finished training have changed or cannot be read."""
        if self.resumed and self.first:
            path, saved = self.resumed
            try:
                warning = check_same_data(saved, self.data.identity(), path, finished=True)
            except UserError as e:
                warning = str(e)
            if warning:
                print(f"warning: {warning}", file=sys.stderr)

    def _take_data(self) -> None:
        """Record what the training data are, and the feature floor: the checkpoint's or, without one, that of the data.

        Warn if the data are not those of the checkpoint. Raises `UserError` if it is within an epoch.
        """
        self.origin["data"] = self.data.identity()
        for line in self.data.notes if self.first else ():
            print(line, flush=True)
        path, saved = self.resumed or (self.folder, {})
        if (warning := check_same_data(saved, self.origin["data"], path)) and self.first:
            print(f"warning: {warning}", file=sys.stderr)
        if self.origin.get(KEY) is None:
            self.origin[KEY] = self.processes.gather(self.data.feature_floor() if self.first else None)[0]
        if self.origin[KEY] is not None and self.cfg.decode.feature_floor:
            self.model.encoder.feature_floor = self.origin[KEY].to(self.device)

    def _finished(self) -> bool:
        return self.epoch > self.cfg.train.num_epochs or self._at_limit()

    def _at_limit(self) -> bool:
        return 0 < self.cfg.train.max_steps <= self.step

    def _run_epoch(self) -> None:
        """Train on the rest of this epoch. Raises `UserError` if none, or too little, of the epoch could be loaded."""
        train, fresh, before = self.cfg.train, self.batch == 0, self.step
        self.model.train()
        self.schedule.step_epoch(self.epoch - 1)
        loader = self.data.train_dataloader(self.epoch, skip_batches=self.batch)
        named, left = f"epoch {self.epoch}/{train.num_epochs}", lambda: self.length.seconds_left(self.step)
        progress = Progress(loader.num_cuts, named, "utt", left) if self.first else None
        with progress or nullcontext():
            asked = time.perf_counter()
            for batch in loader:
                waited = time.perf_counter() - asked
                sums = self.train_pass(batch)
                if self.telemetry is not None and progress is not None:
                    self.telemetry.add_time(waited, time.perf_counter() - asked)
                    progress.update(int(sums.utterances) if sums else 0, self.telemetry.note)
                if sums is not None:
                    self._after_step(loader, progress)
                    if self._at_limit():
                        break
                asked = time.perf_counter()
        if fresh and self.step == before:  # without a checkpoint, which would pass for a trained model
            _, problem = left_out(loader, self.processes)
            raise UserError(
                f"{self.data.data_dir}: epoch {self.epoch} has no step: none of its {loader.num_cuts} utterances could be "
                f"loaded{last(problem)}; fix the audio or features, or let prepare.sh make them again (--force)"
            )
        if skipped := self._count_lost(loader):
            print(f"epoch {self.epoch}: {skipped} utterances could not be loaded and were left out")
        self._flush()

    def _after_step(self, loader: Batches, progress: Progress | None) -> None:
        """Log, validate and save, if it is time."""
        train = self.cfg.train
        if self.step % train.log_every == 0:
            self._flush()
            self._count_lost(loader)
            release_free_memory()
        if train.valid_every and self.step % train.valid_every == 0:
            if progress is not None:
                progress.clear()
            self.validate()
        if train.save_every and self.step % train.save_every == 0:
            self.save(self.folder / f"step-{self.step}.pt")
            self._tidy()

    def _count_lost(self, loader: Batches) -> int:
        """Return how many utterances of the epoch were lost so far. Raises `UserError` if data.max_lost are exceeded."""
        skipped, problem = left_out(loader, self.processes)
        check_lost(f"epoch {self.epoch}", skipped, loader.epoch_cuts, loader.max_lost, problem)
        return skipped

    def train_pass(self, batch: Batch) -> StepSums | None:
        """Train on a micro-batch; after the last one of a step, update the weights and return its sums, else None."""
        self.gradient.add(batch, self.warmup, monitor=self.step % MONITOR_EVERY == 0)
        if not batch.ends_step:
            return None
        sums = self._finish_step()
        self.gradient.clear()
        return sums

    def _finish_step(self) -> StepSums | None:
        """Update the weights. If a loss or gradient is not finite, all processes skip the step and report it."""
        self.gradient.sum_processes()
        self.batch += 1
        if all(p.grad is None for p in self.gradient.params):
            return None  # none of its utterances could be loaded
        self.scaler.unscale_(self.optimizer)
        norms = self.gradient.norms()
        if self.cfg.gradient.control == "clip":
            torch.nn.utils.clip_grad_norm_(self.gradient.params, self.cfg.gradient.clip_norm)
        self.step += 1
        sums = self.gradient.read(norms.norm())
        finite = math.isfinite(sums.loss + sums.gradient_norm)
        if finite or (self.scaler.is_enabled() and math.isfinite(sums.loss)):
            self.scaler.step(self.optimizer)  # fp16's scale may be too large: it skips the step itself and lowers it
        else:
            self._skip_step()
        self.scaler.update()
        self.schedule.step_batch()
        self.average.update(self.model, self.step)
        self.masks.end_step(self.step, keep=finite)
        if finite and self.telemetry is not None:
            self.telemetry.add(sums, norms, self.gradient.outside())
        return sums

    def _flush(self) -> None:
        """Write a row of the log."""
        self.masks.collect()
        if self.telemetry is not None:
            self.telemetry.flush(self.epoch, self.step, self.schedule.get_last_lr()[0], self.masks.flush())

    def _skip_step(self) -> None:
        """Save and name the utterances of a non-finite step; raise `TrainingDiverged` after more than train.max_bad_steps."""
        self.bad_steps += 1
        what, ids, paths = self.gradient.save_bad(self.exp_dir / "bad", f"step-{self.step}")
        names, path = first_of(ids), ", ".join(paths)
        print(f"warning: step {self.step} skipped: {what} not finite for {names}; saved in {path}")
        if self.bad_steps > self.cfg.train.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_steps} steps with a non-finite loss or gradient (train.max_bad_steps is "
                f"{self.cfg.train.max_bad_steps}); the last: {names}"
            )

    def validate(self) -> None:
        """Write the losses and the WER on the dev parts to the log and return to training mode."""
        scores = {c.mark: self.validator(self.warmup, c) for c in self.data.corpora if c.corpus.dev}
        if scores and self.telemetry is not None:
            self.telemetry.add_valid(self.epoch, self.step, scores)

    def save(self, path: Path) -> None:
        """Write a checkpoint that resumes bit for bit, and config.yaml. All processes must call this; the first writes."""
        self.masks.collect()
        rngs = self.processes.gather(random_state(self.device))
        if not self.first:
            return
        content = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "telemetry": self.masks.state_dict(),
            "progress": {name: getattr(self, name) for name in (*COUNTS, "max_duration", "warm_batches")},
            "rng": {**rngs[0], "others": rngs[1:]},
            **self.origin,
        }
        with held_back():  # config.yaml describes the newest checkpoint
            save_file(content, path)
            self._write_config()

    def _write_config(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        write_config(self.origin, self.exp_dir / "config.yaml", max_duration=self.max_duration, parameters=parameters)

    def _resume(self) -> dict[str, Any]:
        """Restore the newest readable checkpoint; return its content, empty without one."""
        if self.first:
            for path in [p for folder in (self.exp_dir, self.folder, self.exp_dir / "bad") for p in remove_abandoned(folder)]:
                print(f"removed {path}, which a killed run left unfinished")
        found = newest_readable(self.folder)
        if found is None:
            return {}
        path, saved = found
        try:
            self._restore(path, saved)
        except DAMAGED as e:
            raise UserError(f"{path}: damaged ({described(e)}); remove it to resume from an earlier one") from None
        return saved

    def _restore(self, path: Path, saved: dict[str, Any]) -> None:
        """Restore what `save` wrote. Raises `UserError` for the checkpoint of another run, other errors for damaged values."""
        check_same_run(saved, self.origin, path)
        check_trained(saved, path)
        load_weights(self.model, saved["model"], path)
        check_saved_state(saved, self.model, self.cfg.optim)
        self.average.load_state_dict(saved["average"])
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(saved["optimizer"])
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(values)  # section `optim` of this run, not that of the checkpoint
        self.schedule.load_state_dict(saved["schedule"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        check_finite(dict(leaves(saved)), path)
        self.origin[KEY] = saved_floor(saved, self.cfg.features.num_mel_bins, path)
        self.epoch, self.batch, self.step, self.bad_steps = (saved["progress"][name] for name in COUNTS)
        self.resumed = path, {key: saved[key] for key in ("data", "progress") if key in saved}
        rank, size = self.processes.rank, self.processes.size
        if (before := restore_random_state(saved["rng"], self.device, rank, self.cfg.train.seed, self.step)) != size:
            what = "dropout differs" if self.cfg.train.batch_seconds else "dropout and the size of steps differ"
            print(f"warning: {path} was written by {before} processes, now there are {size}; {what} from here on")
        self.masks.load_state_dict(saved.get("telemetry", {}))
        print(f"resuming from {path}: {self.step} batches done, now in epoch {self.epoch}")
        if self.first:
            warn_of_changes(saved, self.origin["config"])

    def _start_from_another(self) -> None:
        """Take the weights of train.init. Raises `UserError` if they do not fit, or are not the same in all processes."""
        print(start_from(self.model, self.cfg, self.data.tokenizer.tokens), flush=True)
        self.average = RunningAverage(self.model, self.cfg.train.average_period)
        state = {name: value.cpu() for name, value in self.model.state_dict().items()} if self.processes.size > 1 else {}
        if len(set(self.processes.gather(weights_hash(state)))) > 1:
            raise UserError(f"key 'train.init': {self.cfg.train.init} has other weights on another machine")

    def _tidy(self) -> None:
        """Remove old checkpoints, except those that averaging or train.keep_last needs."""
        keep, average = self.cfg.train.keep_last, self.cfg.average
        if keep > 0 and self.first:
            steps = average.num + 1 if average.unit == "step" else 2
            remove_old(self.folder, epochs=max(keep, average.num + 1), steps=steps)
