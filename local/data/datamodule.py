"""Batches for training, validation and decoding, from the cuts that prepare.sh wrote.

Training batches depend on (seed, epoch) alone, an utterance's augmentation on (seed, epoch, utterance).
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from local.common.allocator import release_free_memory
from local.common.children import begin_child, room_for_children, why_loader_failed
from local.common.errors import UserError
from local.common.processes import Processes, cores
from local.config.schema import AUTO, Config
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import parse_item
from local.corpus.shard_store import shard_store
from local.data.batch import Batch
from local.data.batching import Shares, pack_by_length, train_batches
from local.data.dataset import AsrDataset
from local.data.durations import SPEED
from local.data.feature_floor import UTTERANCES, floor_of, utterances_of
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.training_cuts import ShuffledCuts, read_cut_lines

import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader, dataloader

# If there is no room for its workers, torch deletes a half-made object, and prints a traceback for want of this attribute.
dataloader._MultiProcessingDataLoaderIter._shutdown = True


class Batches:
    """An iterable over the batches of one pass through `num_cuts` utterances.

    `skipped` of them could not be loaded so far; `last_problem` names the last of these and the reason ("" if there is none).
    `max_lost` is the share of them that may be lost.
    """

    def __init__(self, loader: DataLoader, num_cuts: int, max_lost: float = 1.0, with_empty: bool = False) -> None:
        """Iterate over `loader`; with_empty: also yield batches without utterances, as all processes must make each pass."""
        self.loader, self.num_cuts, self.max_lost, self.with_empty, self.skipped = loader, num_cuts, max_lost, with_empty, 0
        self.last_problem = ""
        self._workers: list[BaseProcess] = []

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises `UserError` for a damaged line of a manifest, and for a worker that is killed or stands still.
        """
        try:
            for batch in self._start_workers():
                self.skipped += len(batch.skipped)
                self.last_problem = batch.problem or self.last_problem
                if batch.ids or self.with_empty:
                    yield batch
        except UserError as e:  # a worker's has a traceback before its own line
            raise UserError(str(e).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")) from None
        except RuntimeError as e:
            if why := why_loader_failed(e, self._workers):
                raise UserError(why) from None
            raise

    def _start_workers(self) -> Iterator[Batch]:
        """Fork the workers.

        A worker that destroys a GPU's tensor which it inherits as garbage is ended by CUDA. So garbage is collected first,
        and the workers' collectors ignore what remains. Free memory is released so that they do not inherit it.
        """
        if self.loader.num_workers == 0:
            return iter(self.loader)
        gc.collect()
        release_free_memory()
        gc.freeze()
        try:
            with room_for_children():
                found = iter(self.loader)
            self._workers = multiprocessing.active_children()
            return found
        finally:
            gc.unfreeze()


class AsrDataModule:
    """Loaders over data/<corpus>; `cfg` sets batching, augmentation and features, corpus.yaml names the parts."""

    def __init__(self, cfg: Config, data_dir: str | Path, tokenizer: Tokenizer, processes: Processes | None = None) -> None:
        """Read corpus.yaml only. Raises `UserError` if data_dir is not prepared.

        processes: those that share the data. `max_duration` is None for train.max_duration=auto until the trainer sets it.
        """
        self.processes = processes or Processes()
        self.cfg, self.data_dir, self.tokenizer = cfg, Path(data_dir), tokenizer
        self.max_duration: float | None = None if cfg.train.max_duration == AUTO else cfg.train.max_duration
        self.corpus = load_corpus(self.data_dir / "corpus.yaml", cfg.data)
        self._store = shard_store(self.data_dir, cfg.data, self.corpus)
        self._train: ShuffledCuts | None = None
        self._read: dict[str, list[Cut]] = {}  # by part

    def train_dataloader(self, epoch: int, skip_batches: int = 0) -> Batches:
        """Return the augmented batches of an epoch from step `skip_batches` on.

        A step takes train.batch_seconds seconds of audio in all. If that is 0, it takes train.max_duration per process. Both
        count every copy of an utterance.
        """
        cfg, cuts, steps = self.cfg, self._train_cuts(), self._steps(epoch)[skip_batches:]
        shares = Shares(steps, cuts, self._limit() / cfg.loss.copies, self.processes.rank, self.processes.size)
        dataset = AsrDataset(cfg, self.tokenizer, self._noise(), augment=True, epoch=epoch, store=self._store, cuts=cuts)
        return Batches(self._loader(dataset, shares), sum(map(len, steps)), cfg.data.max_lost, with_empty=True)

    def batches_per_epoch(self) -> int:
        """Return the number of steps of the first epoch, for all processes together."""
        return len(self._steps(1))

    def _steps(self, epoch: int) -> list[list[int]]:
        """Return the steps of an epoch as `train_batches` does."""
        total, size = self.cfg.train.batch_seconds, self.processes.size
        seconds, width = (total, 1) if total else (self._limit(), size)
        return train_batches(self._train_cuts(), self.cfg.data.num_buckets, seconds / self.cfg.loss.copies, epoch, width)

    def identity(self) -> dict[str, Any]:
        """Return what the training data are: numbers of cuts and noises, hours, a hash of ids, lengths and transcripts."""
        cuts, noise = self._train_cuts(), self._noise()
        content = hashlib.sha256(cuts.content.digest())
        for cut in noise:
            content.update(f"\n{cut.id}\t{cut.duration}".encode("utf-8", "surrogatepass"))
        hours = round(float(cuts.seconds[: len(cuts.lines)].sum()) / 3600, 4)
        return {"cuts": len(cuts.lines), "hours": hours, "noises": len(noise), "hash": content.hexdigest()[:32]}

    def train_lengths(self, most: int) -> list[tuple[float, int]]:
        """Return seconds and tokens of the training cuts, or of `most` random ones if there are more."""
        cuts = self._train_cuts()
        return [(float(cuts.seconds[number]), cuts.tokens_of(number)) for number in cuts.order(0)[:most].tolist()]

    def feature_floor(self) -> torch.Tensor | None:
        """Return the feature floor (F,) of training utterances; None if none of them can be loaded.

        They are the first of the first epoch, without copies at other speeds, so that of a corpus in shards only those are
        read that training reads first. No random number is drawn.
        """
        cuts = self._train_cuts()
        ordered = map(cuts.cut, cuts.order(1).tolist())
        chosen = list(islice((cut for cut in ordered if SPEED not in (cut.custom or {})), UTTERANCES))
        batches = self._plain(chosen, self.cfg.decode.max_duration, Processes(), warn=False)
        return floor_of(utterances_of(batches))

    def valid_dataloader(self) -> Batches:
        """Return this process's share of the dev parts, not augmented, in batches of train.max_duration."""
        return self._plain(self._dev_cuts(), self._limit(), self.processes)

    def valid_ids(self) -> list[str]:
        """Return the ids of the dev parts' utterances."""
        return [cut.id for cut in self._dev_cuts()]

    def _dev_cuts(self) -> list[Cut]:
        return [cut for part in self.corpus.dev for cut in self._cuts(part)]

    def test_dataloader(self, part: str) -> Batches:
        """Return a part, or its first decode.max_utterances: not augmented, longest first, batches of decode.max_duration.

        Utterances without stored features count as skipped.
        """
        cuts, most = sorted(self._cuts(part), key=lambda cut: cut.id), self.cfg.decode.max_utterances
        found = self._plain(cuts[: most or None], self.cfg.decode.max_duration, Processes())
        whole = self.data_dir / "cuts" / f"{part}.jsonl.gz"
        if self._precomputed and whole.is_file() and (lacking := len(read_cut_lines(whole)) - len(cuts)) > 0:
            found.num_cuts, found.skipped = found.num_cuts + lacking, lacking
            found.last_problem = f"{self._manifest(part)} has not all utterances of {whole}; prepare.sh says why"
        return found

    def references(self, parts: Iterable[str]) -> list[str]:
        """Return the transcripts of these parts."""
        return [cut.supervisions[0].text or "" for part in parts for cut in self._cuts(part)]

    def speakers(self, part: str) -> dict[str, str]:
        """Return the speakers of a part's utterances by their ids; "" for an unknown one."""
        return {cut.id: str(cut.supervisions[0].speaker or "") for cut in self._cuts(part)}

    def _train_cuts(self) -> ShuffledCuts:
        """Return the training cuts; the first call reads them."""
        cfg = self.cfg
        if self._train is None:
            manifests = [self._manifest(part) for part in self.corpus.train]
            options = cfg.augment.speed_perturb, self._precomputed, cfg.data.shuffle_shards
            self._train = ShuffledCuts(manifests, lang_dir(self.data_dir, cfg.lang), cfg.train.seed, *options)
        return self._train

    def _noise(self) -> list[Cut]:
        """Return the noise to mix in; none if key augment.musan is null."""
        return [] if self.cfg.augment.musan is None else self._cuts("musan")

    def _limit(self) -> float:
        if self.max_duration is None:
            raise UserError("key 'train.max_duration' is auto, but no training has chosen a number yet; set a number")
        return self.max_duration

    @property
    def _precomputed(self) -> bool:
        return self.cfg.features.type == "precomputed"

    def _manifest(self, part: str) -> Path:
        return self.data_dir / ("features" if self._precomputed else "cuts") / f"{part}.jsonl.gz"

    def _cuts(self, part: str) -> list[Cut]:
        """Return the cuts of a part without speed-perturbed copies; its manifest is read once."""
        if part not in self._read:
            manifest = self._manifest(part)
            lines = enumerate(read_cut_lines(manifest), 1)
            cuts: list[Cut] = [parse_item(line, Cut, f"{manifest}:{number}") for number, line in lines]  # type: ignore[type-abstract]
            self._read[part] = [cut for cut in cuts if SPEED not in (cut.custom or {})]
        return self._read[part]

    def _plain(self, cuts: list[Cut], max_duration: float, by: Processes, warn: bool = True) -> Batches:
        """Return the share of `by` in the cuts, longest first, in batches of up to `max_duration` seconds.

        warn: name the utterances that cannot be loaded.
        """
        dataset = AsrDataset(self.cfg, self.tokenizer, None, augment=False, epoch=0, store=self._store, warn=warn)
        cuts = sorted(cuts, key=lambda cut: (-cut.duration, cut.id))
        batches = list(pack_by_length(cuts, (cut.duration for cut in cuts), max_duration))
        return Batches(self._loader(dataset, batches[by.rank :: by.size]), len(cuts), self.cfg.data.max_lost)

    def _loader(self, dataset: AsrDataset, items: Iterable[Any]) -> DataLoader:
        workers = self.cfg.data.num_workers
        if workers < 0:
            workers = max(1, min(8, cores() // self.processes.local_size // 2))
        options: dict[str, Any] = {}
        if workers:
            options = {"prefetch_factor": 4, "worker_init_fn": partial(begin_child, os.getpid())}
            options["timeout"] = self.cfg.data.max_wait
        generator = torch.Generator().manual_seed(self.cfg.train.seed)  # otherwise iterating draws from the global one
        return DataLoader(
            dataset,
            sampler=items,
            generator=generator,
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
