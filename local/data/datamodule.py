"""Batches for training, validation and decoding, from the cuts that prepare.sh wrote.

A batch is a dict: "inputs" (N, T, F) float32 padded with log(1e-10), "input_lens" (N,) int64, "ids" and "texts" lists
of N strings, "tokens" (N, U) int64 padded with blank, "token_lens" (N,) int64, "num_frames" the sum of input_lens,
"skipped" the ids of utterances that could not be loaded. Training batches depend on (seed, epoch) alone, an
utterance's augmentation on (seed, epoch, utterance); with several processes, each gets its share of every step. A
training batch also has "ends_step", "batch_of" and "rows" (see `local.data.batching.Share`), and may have no utterance.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet, Fbank
from lhotse.cut import Cut, MixedCut
from lhotse.dataset import SpecAugment
from torch.utils.data import DataLoader, Dataset

from local.corpus.corpus_yaml import load_corpus
from local.common.processes import Processes, cores
from local.common.errors import UserError, reason
from local.data.feature_store import Float16ArchiveReader
from local.data.features import PADDING, make_extractor
from local.common.allocator import release_free_memory
from local.corpus.manifest_lines import parse_item
from local.data.batching import Share, Shares, longest_first_parts, seeded, train_batches, utterance_seed
from local.config.schema import AUTO, AugmentConfig, Config
from local.corpus.shard_store import ShardStore, shard_store
from local.data.tokenizer import BLANK_ID, Tokenizer
from local.data.training_cuts import ShuffledCuts, read_lines

Batch = dict[str, Any]
NOISES = 8  # noises drawn for an utterance: as many as are needed to cover it are used, over and over
WARNINGS = 20  # utterances named by a loader's process; the others are only counted
assert Float16ArchiveReader.name  # importing it is what makes stored features readable


class AsrDataset(Dataset):
    """Cuts or Share -> batch; lives in the loader's processes."""

    def __init__(
        self, cfg: Config, tokenizer: Tokenizer, noise: list[Cut] | None, augment: bool, epoch: int, store: ShardStore
    ) -> None:
        self.tokenizer, self.epoch, self.seed = tokenizer, epoch, cfg.train.seed
        self.precomputed = cfg.features.type == "precomputed"
        self.num_bins = cfg.features.num_mel_bins
        self.features = cfg.features
        self.extractor: Fbank | None = None
        self.augment = augment
        self.noise, self.store = noise or [], store
        self.warned = 0
        self.noise_prob, self.noise_snr = cfg.augment.musan_prob, list(cfg.augment.musan_snr)
        self.spec_augment = make_spec_augment(cfg.augment) if augment and cfg.augment.spec_augment else None

    def __getitem__(self, item: list[Cut] | Share) -> Batch:
        if not isinstance(item, Share):
            return self._collate(item)
        batch = self._collate(item.cuts)
        return {**batch, "ends_step": item.ends_step, "batch_of": item.batch_of, "rows": item.rows}

    def _augmented(self, cut: Cut) -> torch.Tensor:
        """Features (T, F) with noise and masks."""
        seed = utterance_seed(self.seed, self.epoch, cut)
        with seeded(seed):
            if self.noise:
                cut = self._mix(cut, random.Random(seed))
            features = self._load(cut)
            # lhotse cannot draw time masks of less than a frame
            if self.spec_augment is None or len(features) * self.spec_augment.max_frames_mask_fraction < 1:
                return features
            return self.spec_augment(features.unsqueeze(0), torch.tensor([[0, 0, len(features)]]))[0]

    def _mix(self, cut: Cut, rng: random.Random) -> Cut:
        noise = CutSet(rng.sample(self.noise, min(len(self.noise), NOISES)))
        mixed = CutSet([cut]).mix(noise, snr=self.noise_snr, mix_prob=self.noise_prob, preserve_id="left", seed=rng)
        return next(iter(mixed))

    def _collate(self, cuts: Iterable[Cut]) -> Batch:
        matrices, kept, skipped = [], [], []
        for cut in cuts:
            try:
                if len(cut.supervisions) != 1:
                    raise ValueError(f"{len(cut.supervisions)} transcripts, where one is meant")
                whole = cut if self.precomputed else self.store.filled(cut)
                matrices.append(self._augmented(whole) if self.augment else self._load(whole))
                kept.append(cut)
            except Exception as e:
                skipped.append(cut.id)
                self._warn(cut, e)
        lens = torch.tensor([len(m) for m in matrices], dtype=torch.int64)
        inputs = torch.full((len(matrices), int(lens.max()) if matrices else 0, self.num_bins), PADDING)
        for row, matrix in zip(inputs, matrices, strict=True):
            row[: len(matrix)] = matrix
        texts = [cut.supervisions[0].text or "" for cut in kept]
        ids = self.tokenizer.encode(texts)
        tokens = torch.full((len(ids), max(map(len, ids), default=0)), BLANK_ID, dtype=torch.int64)
        for row, sequence in zip(tokens, ids, strict=True):
            row[: len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        return {
            "inputs": inputs, "input_lens": lens, "ids": [cut.id for cut in kept], "texts": texts, "tokens": tokens,
            "token_lens": torch.tensor([len(s) for s in ids], dtype=torch.int64), "num_frames": int(lens.sum()),
            "skipped": skipped,
        }  # fmt: skip

    def _warn(self, cut: Cut, e: Exception) -> None:
        self.warned += 1
        more = " (further ones are counted, not named)" if self.warned == WARNINGS else ""
        if self.warned <= WARNINGS:
            print(f"warning: utterance {cut.id} ({file_of(cut)}) left out: {reason(e)}{more}", file=sys.stderr)

    def _load(self, cut: Cut) -> torch.Tensor:
        """Features (T, F) of a cut, float32, stored or computed."""
        if self.precomputed:
            features = torch.from_numpy(cut.load_features())
        else:
            if self.extractor is None:
                self.extractor = make_extractor(self.features)
            features = self.extractor.extract(torch.from_numpy(cut.load_audio()), cut.sampling_rate)
        if features.shape[1] != self.num_bins:
            raise ValueError(f"{features.shape[1]} feature channels, not features.num_mel_bins={self.num_bins}")
        if not torch.isfinite(features.sum()):
            raise ValueError("its features are not finite")
        return features


class Batches:
    """What a dataloader method returns: iterate for batches; `skipped` counts utterances that failed to load."""

    def __init__(self, loader: DataLoader, num_cuts: int) -> None:
        self.loader, self.num_cuts, self.skipped = loader, num_cuts, 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._begun():
            self.skipped += len(batch["skipped"])
            if batch["ids"] or "ends_step" in batch:
                yield batch

    def _begun(self) -> Iterator[Batch]:
        """Workers are forked here. None of them may destroy a GPU's tensor that it inherits as part of a cycle that is
        garbage, which ends it: what is garbage goes now, and the workers' collectors see nothing of what remains. Nor do
        they inherit free memory."""
        if self.loader.num_workers == 0:
            return iter(self.loader)
        gc.collect()
        release_free_memory()
        gc.freeze()
        try:
            return iter(self.loader)
        finally:
            gc.unfreeze()


class AsrDataModule:
    """Loaders over data/<corpus>; `cfg` gives batching, augmentation and features, corpus.yaml the parts."""

    def __init__(self, cfg: Config, data_dir: str | Path, tokenizer: Tokenizer, processes: Processes | None = None) -> None:
        """Reads corpus.yaml only. Raises `UserError` when data_dir is not prepared.

        processes: those that share the training and dev data; none: this one has it alone.
        `max_duration`, where the configuration says auto, is None until it is set: see local/training/memory_plan.py.
        """
        self.processes = processes or Processes()
        self.cfg, self.data_dir, self.tokenizer = cfg, Path(data_dir), tokenizer
        self.max_duration: float | None = None if cfg.train.max_duration == AUTO else cfg.train.max_duration
        self.corpus = load_corpus(self.data_dir / "corpus.yaml", cfg.data)
        self._store = shard_store(self.data_dir, cfg.data)
        self._train: ShuffledCuts | None = None
        self._noise: list[Cut] | None = None

    def train_dataloader(self, epoch: int, skip_batches: int = 0) -> Batches:
        """Augmented batches of the training parts in the order of (train.seed, epoch), without those of the first steps."""
        cfg, cuts, limit = self.cfg, self._train_cuts(), self._limit()
        seconds = cfg.train.batch_seconds or limit
        steps = train_batches(cuts, cfg.data.num_buckets, seconds, epoch)[skip_batches:]
        shares = Shares(steps, cuts, limit, self.processes.rank, self.processes.size)
        dataset = AsrDataset(cfg, self.tokenizer, self._noise, augment=True, epoch=epoch, store=self._store)
        return Batches(self._loader(dataset, shares), len(cuts))

    def train_lengths(self, most: int) -> list[tuple[float, int]]:
        """Seconds and tokens of the training cuts; of `most` of them, drawn at random, where there are more."""
        cuts = self._train_cuts()
        return [(float(cuts.seconds[number]), cuts.tokens_of(number)) for number in cuts.order(0)[:most].tolist()]

    def valid_dataloader(self) -> Batches:
        """This process's share of the dev parts, not augmented, in batches of train.max_duration."""
        cuts = [c for part in self.corpus.dev for c in self._cuts(part)]
        return self._plain(cuts, self._limit(), self.processes)

    def test_dataloader(self, part: str) -> Batches:
        """One part (or its first decode.max_utterances), not augmented, longest first, batches of decode.max_duration."""
        cuts = sorted(self._cuts(part), key=lambda cut: cut.id)
        return self._plain(cuts[: self.cfg.decode.max_utterances or None], self.cfg.decode.max_duration, Processes())

    def _train_cuts(self) -> ShuffledCuts:
        """The training cuts; read, and the noise with them, when they are first asked for."""
        cfg = self.cfg
        if self._train is None:
            manifests = [self._manifest(part) for part in self.corpus.train]
            options = cfg.augment.speed_perturb, self._precomputed, cfg.data.shuffle_shards
            self._train = ShuffledCuts(manifests, cfg.train.seed, *options)
            if cfg.augment.musan is not None:
                self._noise = self._cuts("musan")
        return self._train

    def _limit(self) -> float:
        if self.max_duration is None:
            raise UserError("key 'train.max_duration' is auto, and no training has chosen a number: give one")
        return self.max_duration

    @property
    def _precomputed(self) -> bool:
        return self.cfg.features.type == "precomputed"

    def _manifest(self, part: str) -> Path:
        return self.data_dir / ("features" if self._precomputed else "cuts") / f"{part}.jsonl.gz"

    def _cuts(self, part: str) -> list[Cut]:
        """A part's cuts without speed-perturbed copies."""
        manifest = self._manifest(part)
        lines = enumerate(read_lines(manifest), 1)
        cuts: list[Cut] = [parse_item(line, Cut, f"{manifest}:{number}") for number, line in lines]  # type: ignore[type-abstract]
        return [cut for cut in cuts if "speed" not in (cut.custom or {})]

    def _plain(self, cuts: list[Cut], max_duration: float, by: Processes) -> Batches:
        dataset = AsrDataset(self.cfg, self.tokenizer, None, augment=False, epoch=0, store=self._store)
        batches = longest_first_parts(cuts, max_duration)
        return Batches(self._loader(dataset, batches[by.rank :: by.size]), len(cuts))

    def _loader(self, dataset: AsrDataset, items: Iterable[Any]) -> DataLoader:
        workers = self.cfg.data.num_workers
        if workers < 0:
            workers = max(1, min(8, cores() // self.processes.local_size // 2))
        prefetch: dict[str, Any] = {"prefetch_factor": 4} if workers else {}
        generator = torch.Generator().manual_seed(self.cfg.train.seed)  # else iterating draws from the global one
        return DataLoader(
            dataset, sampler=items, generator=generator, batch_size=None, num_workers=workers,
            pin_memory=torch.cuda.is_available(), **prefetch,
        )  # fmt: skip


def make_spec_augment(augment: AugmentConfig) -> SpecAugment:
    """lhotse's SpecAugment (Park et al., 2019; time warping as in Espresso), applied to 9 of 10 utterances."""
    if augment.num_frame_masks < 1 or augment.max_frames_mask_fraction <= 0 or augment.frames_mask_size < 1:
        raise UserError("augment: lhotse's SpecAugment needs num_frame_masks, frames_mask_size and "
                        "max_frames_mask_fraction above 0; augment.spec_augment=false switches it off")  # fmt: skip
    return SpecAugment(
        time_warp_factor=augment.time_warp_factor,
        num_feature_masks=augment.num_feature_masks,
        features_mask_size=augment.features_mask_size,
        num_frame_masks=augment.num_frame_masks,
        frames_mask_size=augment.frames_mask_size,
        max_frames_mask_fraction=augment.max_frames_mask_fraction,
    )


def file_of(cut: Cut) -> str:
    """The file a cut is read from, for messages."""
    if isinstance(cut, MixedCut):
        cut = cut.tracks[0].cut
    if cut.features is not None:
        return str(cut.features.storage_path)
    return str(cut.recording.sources[0].source) if cut.recording and cut.recording.sources else "no file"
