"""The dev parts during training: their losses, and the WER of a few of their utterances by greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from local.common.errors import UserError
from local.common.processes import Processes
from local.config.schema import Config
from local.data.batch import Batch, check_lost
from local.data.datamodule import AsrDataModule, Batches
from local.data.prepared_corpus import PreparedCorpus
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.scoring.align import RATES, Unit, unit_of, units, word_errors
from local.training.losses import forward_losses
from model.encoder.subsampling import subsampled
from model.transducer import Transducer, pruned_scale

import torch

METHOD = "greedy_search"


class DevScores(NamedTuple):
    """Losses in nats per encoder frame, and the error rate in percent of `utterances` utterances.

    wer: None if nothing was decoded or the references have no words. rate: what it is, WER or CER.
    """

    simple: float
    pruned: float
    wer: float | None = None
    utterances: int = 0
    ctc: float | None = None  # None without a CTC head
    sharpness: float | None = None  # mean over tokens of their largest probability in one frame; None without tokens
    rate: str = "WER"


class Validator:
    """Measures a model on the dev parts; each process takes its share of the batches. It draws no random numbers."""

    def __init__(self, model: Transducer, cfg: Config, data: AsrDataModule, processes: Processes, device: torch.device) -> None:
        """Keep the model that is trained, on `device`."""
        self.model, self.cfg, self.data, self.processes, self.device = model, cfg, data, processes, device
        self._chosen: dict[str, frozenset[str]] = {}
        self._units: dict[str, Unit] = {}

    def decoded(self, corpus: PreparedCorpus | None = None) -> frozenset[str]:
        """Return the ids of the utterances that are decoded: the same in every validation and every training."""
        wanted, mark = self.cfg.train.valid_utterances, corpus.mark if corpus else ""
        if mark not in self._chosen:
            self._chosen[mark] = frozenset(spread(sorted(set(self.data.valid_ids(corpus))), wanted) if wanted else ())
        return self._chosen[mark]

    def unit(self, corpus: PreparedCorpus | None = None) -> Unit:
        """Return what the error rate of a corpus counts."""
        mark = corpus.mark if corpus else ""
        if mark not in self._units:
            self._units[mark] = unit_of(self.data.valid_texts(corpus), self.cfg.score.unit)
        return self._units[mark]

    @torch.no_grad()
    def __call__(self, warmup: float, corpus: PreparedCorpus | None = None) -> DevScores:
        """Return the scores and leave the model in training mode. All processes must call this.

        corpus: whose dev parts; None: the first. warmup: as in `forward_losses`. While the pruned loss has no weight, nothing
        trains the joiner, and nothing is decoded. Raises `UserError` if no utterance, or fewer than data.max_lost allows, could
        be loaded.
        """
        self.model.eval()
        decoded, unit = self.decoded(corpus), self.unit(corpus)
        decoder = self._decoder() if pruned_scale(warmup) > 0 and decoded else None
        # losses, frames; word errors, words, utterances; CTC; sharpness, tokens
        totals = torch.zeros(9, dtype=torch.float64, device=self.device)
        loader = self.data.valid_dataloader(corpus)
        for batch in loader:
            losses = forward_losses(self.model, batch, warmup=2.0, precision=self.cfg.train.precision, sharpness=True)
            assert losses.sharpness is not None
            totals[:2] += torch.stack([losses.simple.sum(), losses.pruned.sum()])
            totals[7] += losses.sharpness.sum()
            totals[8] += int(batch.token_lens.sum())
            if losses.ctc is not None:
                totals[6] += losses.ctc.sum()
            totals[2] += int(subsampled(batch.input_lens).sum())
            if decoder is not None:
                totals[3:6] += torch.tensor(self._decode(decoder, batch, decoded, unit), dtype=torch.float64).to(self.device)
        self.model.train()
        skipped, problem = left_out(loader, self.processes)
        simple, pruned, frames, errors, words, utterances, ctc, peaks, tokens = self.processes.sum(totals).tolist()
        if frames == 0:
            folder = corpus.data_dir if corpus else self.data.data_dir
            raise UserError(f"{folder}: no utterance of the dev parts could be used{last(problem)}")
        what = f"dev parts{corpus.mark}" if corpus else "dev parts"
        check_lost(what, skipped, loader.num_cuts, loader.max_lost, problem)
        if skipped:
            print(f"{what}: {skipped} utterances could not be loaded and were left out")
        wer = 100 * errors / words if words else None
        of_head = None if self.model.ctc_head is None else ctc / frames
        sharpness = peaks / tokens if tokens else None
        rate = "WER" if decoder is None else RATES[unit]
        return DevScores(simple / frames, pruned / frames, wer, int(utterances), of_head, sharpness, rate)

    def _decoder(self) -> BatchDecoder:
        """Return a decoder with the weights of now, as a search keeps what it computed from them."""
        # Greedy search reads no file, and no text but its own.
        resources = Resources(self.model, self.data.tokenizer, self.device, Path(), clean=str)
        # All frames: early in training the CTC head finds nothing but blank.
        options = replace(self.cfg.decode.of_method(METHOD), blank_skip=0.0, by_method={})
        recognisers = {METHOD: Recogniser(METHOD, resources, options)}
        return BatchDecoder(self.model, recognisers, self.cfg.decode.tail_frames, self.device)

    def _decode(self, decoder: BatchDecoder, batch: Batch, chosen: frozenset[str], unit: Unit) -> tuple[int, int, int]:
        """Decode those utterances of a batch that are in `chosen`; return errors, words or characters, utterances."""
        rows = [row for row, name in enumerate(batch.ids) if name in chosen]
        if not rows:
            return 0, 0, 0
        lens, texts = batch.input_lens[rows], [batch.texts[row] for row in rows]
        hypotheses = decoder.run(batch.inputs[rows, : int(lens.max())], lens, [batch.ids[row] for row in rows])[METHOD]
        found = [self.data.tokenizer.decode(hypothesis.tokens) for hypothesis in hypotheses]
        errors = sum(word_errors(text, hyp, unit) for text, hyp in zip(texts, found, strict=True))
        return errors, sum(len(units(text, unit)) for text in texts), len(rows)


def spread(items: Sequence[str], count: int) -> list[str]:
    """Return `count` of the items, evenly spread over them; all of them if there are no more."""
    n = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * n)] for i in range(n)]


def left_out(loader: Batches, processes: Processes) -> tuple[int, str]:
    """Return how many utterances could not be loaded so far, and the last reason ("" without one).

    All processes must call this.
    """
    found = processes.gather((loader.skipped, loader.last_problem))
    return sum(skipped for skipped, _ in found), next((problem for _, problem in reversed(found) if problem), "")


def last(problem: str) -> str:
    """Return the reason as an end of a message."""
    return f"; the last: {problem}" if problem else ""
