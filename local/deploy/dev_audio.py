"""Utterances of the dev parts with their samples, for the gate of an export."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from local.common.errors import UserError, reason
from local.common.visible import visible
from local.config.schema import Config
from local.corpus.audio_reading import load_audio
from local.corpus.corpus_yaml import Corpus
from local.corpus.manifest_lines import parse_item
from local.corpus.shard_store import shard_store
from local.data.durations import SPEED
from local.data.training_cuts import read_cut_lines

import numpy as np
from lhotse.cut import Cut


@dataclass(frozen=True)
class Utterance:
    """An utterance: samples (S,) float32 in [-1, 1] at the model's rate."""

    id: str
    ref: str
    samples: np.ndarray


def read_utterances(cfg: Config, data_dir: Path, corpus: Corpus, most: int) -> list[Utterance]:
    """Return up to `most` utterances of the dev parts, by id; of more, every n-th, so that all speakers are among them.

    Those that cannot be read are named on stderr and left out. Raises `UserError` if there is none.
    """
    cuts: list[Cut] = []
    for part in corpus.dev:
        manifest = data_dir / "cuts" / f"{part}.jsonl.gz"
        lines = enumerate(read_cut_lines(manifest), 1)
        found: list[Cut] = [parse_item(line, Cut, f"{manifest}:{number}") for number, line in lines]  # type: ignore[type-abstract]
        cuts += [cut for cut in found if SPEED not in (cut.custom or {})]
    cuts.sort(key=lambda cut: cut.id)
    chosen = [cuts[number * len(cuts) // most] for number in range(most)] if len(cuts) > most else cuts
    store = shard_store(data_dir, cfg.data, corpus)
    utterances = []
    for cut in chosen:
        try:
            samples = load_audio(store.with_audio_loaded(cut))[0].astype(np.float32)
            if cut.sampling_rate != cfg.features.sampling_rate:
                raise ValueError(f"{cut.sampling_rate} Hz, not features.sampling_rate={cfg.features.sampling_rate}")
            utterances.append(Utterance(cut.id, cut.supervisions[0].text or "", samples))
        except Exception as e:  # lhotse's readers raise exceptions of many types
            print(f"warning: left out: {visible(f'utterance {cut.id}: {reason(e)}')}", file=sys.stderr)
    if not utterances:
        raise UserError(
            f"{data_dir}: its dev parts ({', '.join(corpus.dev) or 'none'}) have no utterance with audio for the gate; "
            "data.dev_parts=[PART] names another part, --no-gate exports without it"
        )
    return utterances
