"""Batches for training, validation and decoding, from the cuts that prepare.sh wrote.

Training batches depend on (seed, epoch) alone, an utterance's augmentation on (seed, epoch, utterance).
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from local.common.allocator import release_free_memory
from local.common.children import begin_child, room_for_children
from local.common.errors import UserError
from local.common.processes import Processes, cores
from local.config.mix import MARK, shares_of
from local.config.schema import AUTO, Config
from local.data.batch import Batch
from local.data.batching import Shares, pack_by_length, train_batches
from local.data.dataset import AsrDataset
from local.data.durations import SPEED
from local.data.feature_floor import UTTERANCES, floor_of, utterances_of
from local.data.loader_processes import watched
from local.data.mixed_cuts import EpochCuts, MixedCuts, TrainingCuts
from local.data.prepared_corpus import PreparedCorpus, of_key, read_corpora
from local.data.token_counts import TokenCounter
from local.data.tokenizer import Tokenizer, lang_dir
from local.data.training_cuts import ShuffledCuts

import torch
from lhotse.cut import Cut
from torch.utils.data import DataLoader


class Batches:
    """An iterable over the batches of one pass through `num_cuts` utterances, of the `epoch_cuts` of the whole epoch.

    `skipped` of them could not be loaded so far; `last_problem` names the last of these and the reason ("" if there is none).
    `max_lost` is the share of them that may be lost.
    """

    def __init__(self, loader: DataLoader, num_cuts: int, max_lost: float = 1.0, with_empty: bool = False) -> None:
        """Iterate over `loader`; with_empty: also yield batches without utterances, as all processes must make each pass."""
        self.loader, self.num_cuts, self.max_lost, self.with_empty, self.skipped = loader, num_cuts, max_lost, with_empty, 0
        self.last_problem, self.epoch_cuts = "", num_cuts

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises `UserError` for a damaged line of a manifest, and for a worker that is killed or stands still.
        """
        try:
            for batch in watched(self._start_workers):
                self.skipped += len(batch.skipped)
                self.last_problem = batch.problem or self.last_problem
                if batch.ids or self.with_empty:
                    yield batch
        except UserError as e:  # a worker's has a traceback before its own line
            raise UserError(str(e).strip().splitlines()[-1].removeprefix(f"{UserError.__module__}.UserError: ")) from None

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
                return iter(self.loader)
        finally:
            gc.unfreeze()


class AsrDataModule:
    """Loaders over data/<corpus>; `cfg` sets batching, augmentation and features, corpus.yaml names the parts.

    If data/<corpus> is the first folder of data.mix, training draws from all folders there. `corpus` and names of parts are
    those of the first; PART@NAME is a part of another one.
    """

    def __init__(self, cfg: Config, data_dir: str | Path, tokenizer: Tokenizer, processes: Processes | None = None) -> None:
        """Read corpus.yaml, and a line of each manifest of a mix. Raises `UserError` if data_dir is not prepared.

        processes: those that share the data. `max_duration` is None for train.max_duration=auto until the trainer sets it.
        """
        self.processes = processes or Processes()
        self.cfg, self.data_dir, self.tokenizer = cfg, Path(data_dir), tokenizer
        self.max_duration: float | None = None if cfg.train.max_duration == AUTO else cfg.train.max_duration
        self.corpora = read_corpora(cfg, self.data_dir)
        self.corpus = self.corpora[0].corpus
        self._train: TrainingCuts | None = None
        self.notes: list[str] = []  # lines on the training cuts of a mix, once they are read

    def train_dataloader(self, epoch: int, skip_batches: int = 0) -> Batches:
        """Return the augmented batches of an epoch from step `skip_batches` on.

        A step takes train.batch_seconds seconds of audio in all. If that is 0, it takes train.max_duration per process. Both
        count every copy of an utterance.
        """
        cfg, cuts = self.cfg, self._train_cuts().of_epoch(epoch)
        all_steps = self._steps(cuts, epoch)
        steps = all_steps[skip_batches:]
        shares = Shares(steps, cuts, self._limit() / cfg.loss.copies, self.processes.rank, self.processes.size)
        stores = [corpus.store for corpus in self.corpora]
        dataset = AsrDataset(cfg, self.tokenizer, self._noise(), augment=True, epoch=epoch, stores=stores, cuts=cuts)
        found = Batches(self._loader(dataset, shares), sum(map(len, steps)), cfg.data.max_lost, with_empty=True)
        found.epoch_cuts = sum(map(len, all_steps))
        return found

    def batches_per_epoch(self) -> int:
        """Return the number of steps of the first epoch, for all processes together."""
        return len(self._steps(self._train_cuts().of_epoch(1), 1))

    def _steps(self, cuts: EpochCuts, epoch: int) -> list[list[int]]:
        """Return the steps of an epoch as `train_batches` does."""
        total, size = self.cfg.train.batch_seconds, self.processes.size
        seconds, width = (total, 1) if total else (self._limit(), size)
        return train_batches(cuts, self.cfg.data.num_buckets, seconds / self.cfg.loss.copies, epoch, width)

    def identity(self) -> dict[str, Any]:
        """Return what the training data are: numbers of cuts and noises, hours, a hash of ids, lengths and transcripts.

        hours: with the copies at other speeds that are stored; speech_hours: without.
        """
        cuts, noise = self._train_cuts(), self._noise()
        content = hashlib.sha256(cuts.content.digest())
        for cut in noise:
            content.update(f"\n{cut.id}\t{cut.duration}".encode("utf-8", "surrogatepass"))
        hours = {"hours": round(cuts.hours, 4), "speech_hours": round(cuts.speech_seconds / 3600, 4)}
        return {"cuts": cuts.num_lines, **hours, "noises": len(noise), "hash": content.hexdigest()[:32]}

    def train_lengths(self, most: int) -> list[tuple[float, int]]:
        """Return seconds and tokens of the training cuts, or of `most` random ones of a corpus if it has more."""
        return self._train_cuts().lengths(most)

    def feature_floor(self) -> torch.Tensor | None:
        """Return the feature floor (F,) of training utterances; None if none of them can be loaded.

        They are the first of the first epoch, without copies at other speeds, so that of a corpus in shards only those are
        read that training reads first. No random number is drawn.
        """
        cuts, chosen = self._train_cuts().of_epoch(1), defaultdict[int, list[Cut]](list)
        drawn = (cuts.drawn(number, 1) for number in cuts.order(1).tolist())
        for cut, _, corpus in islice((d for d in drawn if SPEED not in (d.cut.custom or {})), UTTERANCES):
            chosen[corpus].append(cut)
        limit = self.cfg.decode.max_duration
        batches = (self._plain(self.corpora[i], chosen[i], limit, Processes(), warn=False) for i in sorted(chosen))
        return floor_of(utterances_of(chain.from_iterable(batches)))

    def valid_dataloader(self, corpus: PreparedCorpus | None = None) -> Batches:
        """Return this process's share of the dev parts of a corpus (default: the first), in batches of train.max_duration.

        They are not augmented.
        """
        corpus = corpus or self.corpora[0]
        return self._plain(corpus, self._dev_cuts(corpus), self._limit(), self.processes)

    def valid_ids(self, corpus: PreparedCorpus | None = None) -> list[str]:
        """Return the ids of the utterances in the dev parts of a corpus (default: the first)."""
        return [cut.id for cut in self._dev_cuts(corpus or self.corpora[0])]

    def valid_texts(self, corpus: PreparedCorpus | None = None) -> list[str]:
        """Return the transcripts of the dev parts of a corpus (default: the first)."""
        return [cut.supervisions[0].text or "" for cut in self._dev_cuts(corpus or self.corpora[0])]

    @staticmethod
    def _dev_cuts(corpus: PreparedCorpus) -> list[Cut]:
        return [cut for part in corpus.corpus.dev for cut in corpus.cuts(part)]

    def test_sets(self, asked: Sequence[str] = ()) -> list[str]:
        """Return the parts to decode: the test parts of all corpora, or those that --sets asks for.

        Raises `UserError` naming what is not there.
        """
        if not asked:
            return [part + corpus.mark for corpus in self.corpora for part in corpus.corpus.test]
        places = map(self.place, asked)
        return list(dict.fromkeys(name for corpus, part in places for name in corpus.named([part])))

    def place(self, name: str) -> tuple[PreparedCorpus, str]:
        """Return the corpus and the part of a set: PART@NAME of another corpus of data.mix, all others of the first."""
        part, mark, corpus = name.rpartition(MARK)
        found = next((c for c in self.corpora[1:] if c.mark == mark + corpus), None)
        return (self.corpora[0], name) if found is None else (found, part)

    def test_dataloader(self, name: str) -> Batches:
        """Return a part, or its first decode.max_utterances: not augmented, longest first, batches of decode.max_duration.

        Utterances without stored features count as skipped.
        """
        corpus, part = self.place(name)
        cuts, lacking, why = corpus.first(part, self.cfg.decode.max_utterances)
        found = self._plain(corpus, cuts, self.cfg.decode.max_duration, Processes())
        if lacking > 0:
            found.num_cuts, found.skipped, found.last_problem = found.num_cuts + lacking, lacking, why
        return found

    def references(self, parts: Iterable[str]) -> list[str]:
        """Return the transcripts of these parts."""
        return [cut.supervisions[0].text or "" for part in parts for cut in self._cuts(part)]

    def speakers(self, part: str) -> dict[str, str]:
        """Return the speakers of a part's utterances by their ids; "" for an unknown one."""
        return {cut.id: str(cut.supervisions[0].speaker or "") for cut in self._cuts(part)}

    def _train_cuts(self) -> TrainingCuts:
        """Return the training cuts; the first call reads them."""
        if self._train is None:
            first = self._cuts_of(self.corpora[0], lang_dir(self.data_dir, self.cfg.lang))
            with of_key("data.mix"):
                others = [self._cuts_of(corpus, TokenCounter(self.tokenizer)) for corpus in self.corpora[1:]]
            self._train = self._mixed([first, *others]) if others else first
        return self._train

    def _cuts_of(self, corpus: PreparedCorpus, lang: Path | TokenCounter) -> ShuffledCuts:
        cfg, manifests = self.cfg, [corpus.manifest(part) for part in corpus.corpus.train]
        options = cfg.augment.speed_perturb, corpus.precomputed, cfg.data.shuffle_shards
        found = ShuffledCuts(manifests, lang, cfg.train.seed, *options)
        if isinstance(lang, TokenCounter) and (report := lang.report()):
            what = f"{corpus.data_dir}, with the tokens of {self.data_dir}: {report}"
            if found.usable == 0:
                hint = "prepare all its folders with the same lang.normalise and lang.rules, or set data.mix_tokens=all"
                raise UserError(f"{what}; none is left; {hint}")
            self.notes.append(what)
        return found

    def _mixed(self, corpora: list[ShuffledCuts]) -> MixedCuts:
        """Return the cuts of the folders of data.mix. Raises `UserError` for a folder that has none."""
        assert self.cfg.data.mix is not None
        sizes = dict(zip(self.cfg.data.mix, (cuts.usable for cuts in corpora), strict=True))
        for folder, size in sizes.items():
            if size == 0:
                raise UserError(f"key 'data.mix': {folder}: its training parts have no utterance that can be used")
        shares = shares_of(self.cfg.data.mix, sizes)
        named = ", ".join(f"{share:.4g} from {folder} ({sizes[folder]} utterances)" for folder, share in shares.items())
        self.notes.append(f"shares of training: {named}")
        return MixedCuts(corpora, list(shares.values()))

    def _noise(self) -> list[Cut]:
        """Return the noise to mix in; none if key augment.musan is null."""
        return [] if self.cfg.augment.musan is None else self._cuts("musan")

    def _limit(self) -> float:
        if self.max_duration is None:
            raise UserError("key 'train.max_duration' is auto, but no training has chosen a number yet; set a number")
        return self.max_duration

    def _cuts(self, name: str) -> list[Cut]:
        corpus, part = self.place(name)
        return corpus.cuts(part)

    def _plain(self, corpus: PreparedCorpus, cuts: list[Cut], max_duration: float, by: Processes, warn: bool = True) -> Batches:
        """Return the share of `by` in the cuts of a corpus, longest first, in batches of up to `max_duration` seconds.

        warn: name the utterances that cannot be loaded.
        """
        dataset = AsrDataset(self.cfg, self.tokenizer, None, augment=False, epoch=0, stores=[corpus.store], warn=warn)
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
