"""Batches from cuts: features, noise, masks, tokens."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

from local.common.errors import UserError, reason
from local.common.visible import visible
from local.config.schema import AugmentConfig, Config
from local.corpus.audio_reading import load_audio
from local.corpus.shard_store import ShardStore
from local.data.audio_augmentation import augmented_audio, changes_audio, check_codecs
from local.data.batch import Batch
from local.data.batching import Share, seeded, utterance_seed
from local.data.digital_silence import with_silence
from local.data.feature_store import Float16ArchiveReader
from local.data.features import PADDING, make_extractor
from local.data.mixed_cuts import EpochCuts
from local.data.tokenizer import BLANK_ID, Tokenizer
from local.data.training_cuts import Drawn

import torch
from lhotse import CutSet, Fbank
from lhotse.cut import Cut, MixedCut
from lhotse.dataset import SpecAugment
from lhotse.dataset.signal_transforms import time_warp
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

assert Float16ArchiveReader.name  # importing the class registers it with lhotse, which reads stored features by its name

MAX_NOISES = 8  # noises drawn per utterance; they are repeated until they cover it
MAX_WARNINGS = 20  # utterances named by each loader process; later ones are only counted


class AsrDataset(Dataset):
    """Makes a batch from cuts, or from a `Share` of `cuts`; runs in the loader's processes."""

    def __init__(
        self,
        cfg: Config,
        tokenizer: Tokenizer,
        noise: list[Cut] | None,
        augment: bool,
        epoch: int,
        stores: Sequence[ShardStore],
        cuts: EpochCuts | None = None,
        warn: bool = True,
    ) -> None:
        """Augment batches if `augment` is set, with noise from `noise` if it is not empty.

        stores: the audio in shards of each corpus. cuts: what the numbers of a `Share` stand for. warn: name the first
        `MAX_WARNINGS` utterances that cannot be loaded.
        """
        self.cfg, self.tokenizer, self.noise, self.augment, self.epoch = cfg, tokenizer, noise or [], augment, epoch
        self.stores, self.cuts = stores, cuts
        self.precomputed = cfg.features.type == "precomputed"
        self.num_bins = cfg.features.num_mel_bins
        self.extractor: Fbank | None = None
        self.warned = 0 if warn else MAX_WARNINGS
        # It is made before the epoch in which it begins: wrong keys are refused when the training starts.
        masks = make_spec_augment(cfg.augment) if augment and cfg.augment.spec_augment else None
        self.spec_augment = masks if epoch > cfg.augment.spec_augment_after * cfg.train.num_epochs else None
        self.changes_audio = changes_audio(cfg.augment)
        if augment and cfg.augment.codec_prob > 0:
            check_codecs()
        self.copies = cfg.loss.copies if augment else 1  # of each utterance

    def __getitem__(self, item: list[Cut] | Share) -> Batch:
        """Return the batch; utterances that cannot be loaded are left out, and named on stderr with `warn`."""
        if not isinstance(item, Share):
            return self._collate([Drawn(cut, self.epoch) for cut in item])
        assert self.cuts is not None
        drawn = [self.cuts.drawn(number, self.epoch) for number in item.numbers]
        return replace(self._collate(drawn), ends_step=item.ends_step)

    def _augmented(self, cut: Cut, turn: int) -> list[torch.Tensor]:
        """Return each copy's features (T, F), of changed audio, masked, with digital silence. Only the masks differ."""
        seed = utterance_seed(self.cfg.train.seed, turn, cut)
        with seeded(seed):
            if self.noise:
                cut = self._mix(cut, random.Random(seed))
            features = self._load(cut, seed)
            copies = [features] * self.copies
            # lhotse cannot draw time masks of less than a frame
            if self.spec_augment is not None and len(features) * self.spec_augment.max_frames_mask_fraction >= 1:
                copies = self._masked(features, self.spec_augment)

        def silenced(features: torch.Tensor) -> torch.Tensor:
            rng = random.Random(f"{seed} silence")  # its own, so that other augmentation is the same without it
            return with_silence(features, rng) if rng.random() < self.cfg.augment.silence_prob else features

        return [silenced(copy) for copy in copies]

    def _masked(self, features: torch.Tensor, masks: SpecAugment) -> list[torch.Tensor]:
        """Return the copies of features (T, F): warped as one, so that their frames correspond, then each masked."""
        factor = self.cfg.augment.time_warp_factor
        if random.random() <= masks.p and factor:  # lhotse draws these numbers in this order, too
            features = time_warp(features, factor)
        return [masks(features.unsqueeze(0))[0] for _ in range(self.copies)]

    def _mix(self, cut: Cut, rng: random.Random) -> Cut:
        noise = CutSet(rng.sample(self.noise, min(len(self.noise), MAX_NOISES)))
        snr, prob = list(self.cfg.augment.musan_snr), self.cfg.augment.musan_prob
        return next(iter(CutSet([cut]).mix(noise, snr=snr, mix_prob=prob, preserve_id="left", seed=rng)))

    def _collate(self, drawn: Iterable[Drawn]) -> Batch:
        copies, loaded, skipped, problem = [], [], [], ""
        for cut, turn, corpus in drawn:
            try:
                if len(cut.supervisions) != 1:
                    raise ValueError(f"{len(cut.supervisions)} transcripts instead of one")
                whole = cut if self.precomputed else self.stores[corpus].with_audio_loaded(cut)
                copies.append(self._augmented(whole, turn) if self.augment else [self._load(whole)])
                loaded.append(cut)
            except Exception as e:
                skipped.append(cut.id)
                problem = f"utterance {cut.id} ({file_of(cut)}): {reason(e)}"
                self._warn(problem)
        lens = torch.tensor([len(first) for first, *_ in copies], dtype=torch.int64)
        padded = [pad_sequence(list(of_one_copy), True, PADDING) for of_one_copy in zip(*copies, strict=True)]
        texts = [cut.supervisions[0].text or "" for cut in loaded]
        ids = [torch.tensor(tokens, dtype=torch.int64) for tokens in self.tokenizer.encode(texts)]
        tokens = pad_sequence(ids, True, BLANK_ID) if ids else torch.zeros(0, 0, dtype=torch.int64)
        token_lens = torch.tensor([len(s) for s in ids], dtype=torch.int64)
        inputs = padded[0] if padded else torch.zeros(0, 0, self.num_bins)
        second = padded[1] if len(padded) > 1 else None
        names = [cut.id for cut in loaded]
        return Batch(inputs, lens, tokens, token_lens, names, texts, skipped, problem=problem, second=second)

    def _warn(self, problem: str) -> None:
        self.warned += 1
        more = " (more are counted, but not named)" if self.warned == MAX_WARNINGS else ""
        if self.warned <= MAX_WARNINGS:
            print(f"warning: left out: {visible(problem)}{more}", file=sys.stderr)

    def _load(self, cut: Cut, seed: int | None = None) -> torch.Tensor:
        """Return the features (T, F) of a cut, float32, read or computed; with `seed`, of augmented audio."""
        if self.precomputed:
            features = torch.from_numpy(cut.load_features())
        else:
            if self.extractor is None:
                self.extractor = make_extractor(self.cfg.features)
            samples = load_audio(cut)
            if seed is not None and self.changes_audio:
                samples = augmented_audio(samples, cut.sampling_rate, self.cfg.augment, seed)
            features = self.extractor.extract(torch.from_numpy(samples), cut.sampling_rate)
        if features.shape[1] != self.num_bins:
            raise ValueError(f"{features.shape[1]} feature channels, not features.num_mel_bins={self.num_bins}")
        if not torch.isfinite(features.sum()):
            raise ValueError("its features contain NaN or infinite values")
        return features


def make_spec_augment(augment: AugmentConfig) -> SpecAugment:
    """Return lhotse's SpecAugment (Park et al., 2019) without its time warping. Raises `UserError` if it cannot draw masks."""
    if augment.num_frame_masks < 1 or augment.max_frames_mask_fraction <= 0 or augment.frames_mask_size < 1:
        raise UserError(
            "keys augment.num_frame_masks, augment.frames_mask_size and augment.max_frames_mask_fraction must be above 0; "
            "augment.spec_augment=false switches SpecAugment off"
        )
    return SpecAugment(
        time_warp_factor=None,  # copies of an utterance are warped together: `AsrDataset` does it
        num_feature_masks=augment.num_feature_masks,
        features_mask_size=augment.features_mask_size,
        num_frame_masks=augment.num_frame_masks,
        frames_mask_size=augment.frames_mask_size,
        max_frames_mask_fraction=augment.max_frames_mask_fraction,
    )


def file_of(cut: Cut) -> str:
    """Return the file that a cut is read from, for messages."""
    if isinstance(cut, MixedCut):
        cut = cut.tracks[0].cut
    if cut.features is not None:
        return str(cut.features.storage_path)
    return str(cut.recording.sources[0].source) if cut.recording and cut.recording.sources else "no file"
