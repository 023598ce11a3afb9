"""The doctor's checks of whether transcripts fit their audio: by tokens and frames, by lengths, and by a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from local.artifacts.checkpoint import Loaded, load_averaged
from local.common.cli import choose_device
from local.common.errors import UserError
from local.config.schema import Config
from local.corpus.dropped import read_dropped
from local.data.batching import pack_by_length
from local.data.dataset import AsrDataset
from local.data.durations import tokens_fit
from local.data.token_counts import MADE_BY, counts_file, read_token_counts
from local.data.tokenizer import lang_dir
from local.health.finding import Finding, note, warning
from local.health.prepared import FEW, Prepared, Utterance, read_prepared, several
from local.training.losses import forward_losses

import numpy as np
import torch

PER_GROUP = 100  # utterances of similar text length that are compared
LEAST = 50  # utterances of a corpus from which lengths are compared
OUT_OF_LINE, LEAST_SPREAD = 6.0, 0.1  # robust standard deviations; the least one, of the logarithm of seconds
OVERHEAD = 10  # characters that take as long as the silence around an utterance
UNRELATED = 0.35  # correlation of the lengths of transcripts and audio: 0.83 to 0.96 in healthy parts, to 0.26 if shifted
VARIED = 0.2  # standard deviation of the logarithms of both lengths from which their correlation says something
SCORED = 50  # utterances of a part that a model scores without option --all
WRONG, OUTLYING = 0.75, 8.0  # share of a guess's nats per token; robust standard deviations above the median
LEAST_NATS = 20.0  # of an utterance: one or two words that the model hears wrongly are not enough
SECONDS = 60.0  # of audio in a batch, and of the longest utterance that is scored


def check_token_lengths(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with transcripts that have more tokens than the encoder has frames: they cannot be right."""
    prepared, lang = read_prepared(data_dir, cfg), lang_dir(data_dir, cfg.lang)
    dropped = read_dropped(lang / "dropped.tsv", MADE_BY)
    for part, utterances in prepared.parts.items():
        if part in prepared.train:  # preparation has left them out
            ids = [d.id for d in dropped if d.part == part and d.kind.startswith("more tokens than frames")]
            enough = len(ids) > FEW * len(utterances)
        else:
            counts = read_token_counts(counts_file(lang, part))
            ids = [u.id for u in utterances if not tokens_fit(u.seconds, counts.get(u.id, 0))]
            enough = bool(ids)
        if enough:
            what = f"{several(ids, part, len(utterances))} have more tokens than the encoder has frames (25 per second)"
            larger = f"raise lang.vocab_size={cfg.lang.vocab_size}" if cfg.lang.type == "bpe" else "set lang.type=bpe"
            fix = f"fix transcripts that are too long; if they are right, {larger}"
            yield warning(what, f"{fix}: the same text then has fewer tokens")


def check_lengths(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield utterances that last far longer or shorter than others of as much text, and parts without any relation."""
    prepared = read_prepared(data_dir, cfg)
    pairs = [(part, u) for part, utterances in prepared.parts.items() for u in utterances]
    if len(pairs) < LEAST:
        return
    deviations = out_of_line([u for _, u in pairs])
    for part, utterances in prepared.parts.items():
        characters, seconds = (
            np.log([max(f(u), 1e-3) for u in utterances]) for f in (lambda u: len(u.text), lambda u: u.seconds)
        )
        if len(utterances) >= LEAST and min(characters.std(), seconds.std()) > VARIED:
            correlation = float(np.corrcoef(characters, seconds)[0, 1])
            if correlation < UNRELATED:
                what = (
                    f"part '{part}': long transcripts do not have long audio (correlation of the logarithms {correlation:.2f})"
                )
                yield warning(what, "check whether transcripts belong to other utterances, such as that of the line before")
                continue
        here = [(float(z), u) for (name, u), z in zip(pairs, deviations, strict=True) if name == part]
        for sign, how in ((1, "longer"), (-1, "shorter")):
            found = sorted(((-sign * z, u.id, u) for z, u in here if sign * z > OUT_OF_LINE))
            if found:
                names = [f"{u.id} with {u.seconds:.1f} s for {len(u.text)} characters" for _, _, u in found]
                what = f"{several(names, part, len(utterances))} are far {how} than others of as much text"
                yield warning(what, "listen to them: words may be missing in the transcript or in the audio")


def out_of_line(utterances: Sequence[Utterance]) -> np.ndarray:
    """Return by how many robust standard deviations the logarithm of the seconds per character is above that of its group.

    (N,). A group has utterances of similar length of text. The deviation is 1.4826 times the median absolute one (Iglewicz
    and Hoaglin, "How to detect and handle outliers", 1993).
    """
    characters = np.array([len(u.text) for u in utterances])
    pace = np.log(np.array([u.seconds for u in utterances]) / (characters + OVERHEAD))
    order, found = np.argsort(characters, kind="stable"), np.zeros(len(pace))
    for rows in np.array_split(order, max(1, len(order) // PER_GROUP)):
        found[rows] = deviations(pace[rows], LEAST_SPREAD)
    return found


def deviations(x: np.ndarray, least: float) -> np.ndarray:
    """Return the distances from the median, in robust standard deviations of at least `least`."""
    centre = np.median(x)
    return (x - centre) / max(1.4826 * float(np.median(np.abs(x - centre))), least)


def check_scores(data_dir: Path, cfg: Config, every: bool, checkpoint: Path) -> Iterator[Finding]:
    """Yield utterances whose transcripts a trained model finds as unlikely as random tokens, unlike most others of the part.

    A model that is not good enough to say so, for most utterances are unlikely, gives a note.
    """
    loaded, prepared = load_averaged(checkpoint), read_prepared(data_dir, cfg)
    guess = math.log(loaded[2].vocab_size)  # nats per token
    total = 0
    for part in prepared.parts:
        ids, losses, tokens = score(prepared, part, None if every else SCORED, loaded)
        total += len(ids)
        if not ids:
            continue
        per_token = losses / np.maximum(tokens, 1)
        if np.median(per_token) > WRONG * guess / 2:
            yield note(f"part '{part}': {checkpoint} is not accurate enough to check transcripts")
            continue
        wrong = (deviations(per_token, 1e-9) > OUTLYING) & (per_token > WRONG * guess) & (losses > LEAST_NATS)
        if wrong.any():
            names = [f"{ids[i]} with {per_token[i]:.1f} nats per token" for i in np.argsort(-per_token) if wrong[i]]
            what = f"the transcripts of {several(names, part, len(ids))} do not fit their audio according to {checkpoint}: "
            what += f"half of the others have less than {np.median(per_token):.2g}"
            yield warning(what, "listen to them; fix or remove what is wrong")
    if not every:
        yield note(f"model: scored a sample of {total} utterances, --all scores all")


def score(prepared: Prepared, part: str, most: int | None, loaded: Loaded) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the ids of utterances of a part, their pruned losses in nats (N,) and their numbers of tokens (N,).

    Features are computed from the audio; what cannot be loaded, or lasts longer than `SECONDS`, is left out.
    """
    model, cfg, tokenizer = loaded
    model = model.to(choose_device())
    cfg = replace(cfg, features=replace(cfg.features, type="on_the_fly"))
    dataset = AsrDataset(cfg, tokenizer, None, augment=False, epoch=0, stores=[prepared.store()], warn=False)
    found = [cut for _, cut in prepared.cuts(part, prepared.sample(part, most)) if not isinstance(cut, UserError)]
    cuts = sorted((cut for cut in found if cut.duration <= SECONDS), key=lambda cut: -cut.duration)
    ids, losses, tokens = [], [np.zeros(0)], [np.zeros(0, np.int64)]
    with torch.inference_mode():
        for chunk in pack_by_length(cuts, (cut.duration for cut in cuts), SECONDS):
            batch = dataset[chunk]
            if len(batch):
                ids += batch.ids
                losses.append(forward_losses(model, batch, warmup=2.0).pruned.double().cpu().numpy())
                tokens.append(batch.token_lens.numpy())
    return ids, np.concatenate(losses), np.concatenate(tokens)


CHECKS: tuple[Callable[[Path, Config, bool], Iterator[Finding]], ...] = (check_token_lengths, check_lengths)
MODEL_CHECKS: tuple[Callable[[Path, Config, bool, Path], Iterator[Finding]], ...] = (check_scores,)
