"""The gate of an export: the output of sherpa-onnx must equal that of the recipe, on the same samples of the dev parts.

Both get the utterance and zeros, so many that whole chunks cover the utterance and what follows it. The recipe encodes
exactly the frames that the client decodes, on the CPU, without decode.tail_frames. So a float32 graph must give equal tokens
at equal times. An 8-bit graph rounds, therefore only its share of equal utterances and its WER are limited.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from local.common.errors import UserError, first_of
from local.common.progress import Progress
from local.config.schema import Config
from local.data.batching import pack_by_length
from local.data.features import PADDING, make_extractor
from local.data.tokenizer import Tokenizer
from local.decoding.batch_decoder import BatchDecoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.decoding.streaming import OVERLAP
from local.deploy.client import BEAM, GREEDY, METHODS_OF_CLIENT
from local.deploy.dev_audio import Utterance
from local.deploy.metadata import check_metadata
from local.deploy.packages import versions
from local.deploy.sherpa import Said, recognise, recogniser_options
from local.scoring.align import RATES, Unit, unit_of, units, word_errors
from model.transducer import Transducer

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

MOST = 200  # utterances
TAIL = 30  # frames after an utterance, in which its last tokens come (decode.tail_frames has as many)
# float32: the share of utterances that may differ. Greedy search takes one maximum per frame. Beam search adds and sorts many
# sums, which two programs round differently.
DIFFERENT = {GREEDY: 0.0, BEAM: 1 / 200}
# int8 against float32, in the client: the share of utterances that may differ, and the WER in percent. One utterance and one
# word are always allowed: of few utterances, each is more than the share.
INT8_DIFFERENT, INT8_WER = 0.03, 0.5
# The int8 encoder has at most this share of the float32 one's size, 8 of 32 bits and scales, and this many bytes more: the
# convolutions stay in float32, which counts in models of few megabytes only.
INT8_SIZE, CONVOLUTIONS = 0.30, 100_000
FEW = 10  # utterances that show whether the client takes a language model or hotwords
SHOWN = 10  # utterances that differ, on the screen


@dataclass(frozen=True)
class Heard:
    """What one program recognised in all utterances by one method."""

    said: list[Said]
    texts: list[str]
    errors: int
    words: int
    unit: Unit

    @property
    def wer(self) -> float | None:
        """Error rate in percent; None if the references have no word."""
        return round(100 * self.errors / self.words, 4) if self.words else None

    def __str__(self) -> str:
        """Return the rate for messages."""
        return f"{self.errors} errors without references" if self.wer is None else f"{RATES[self.unit]} {self.wer:.2f} %"


def frames_decoded(num_frames: int, chunk_frames: int) -> int:
    """Return how many of the frames the client decodes: a chunk starting at p is decoded if p + chunk + 5 < num_frames."""
    chunks = max(0, -(-(num_frames - chunk_frames - OVERLAP) // chunk_frames))
    return chunks * chunk_frames + OVERLAP if chunks else 0


def padded(samples: np.ndarray, sampling_rate: int, chunk_frames: int) -> np.ndarray:
    """Return samples (S,) and zeros after them, so that whole chunks cover them and `TAIL` frames."""
    zeros = (chunk_frames + OVERLAP + 1 + TAIL) * sampling_rate // 100
    return np.concatenate([samples, np.zeros(zeros, np.float32)])


class Gate:
    """The recipe and sherpa-onnx side by side; `run` compares them."""

    def __init__(self, model: Transducer, cfg: Config, tokenizer: Tokenizer, chunk_frames: int) -> None:
        """Keep a model in evaluation mode on the CPU; section decode of `cfg` as the exported joiner has it."""
        self.model, self.cfg, self.tokenizer, self.chunk_frames = model, cfg, tokenizer, chunk_frames

    def run(self, folder: Path, utterances: Sequence[Utterance], int8: bool, lm_scale: float) -> dict[str, Any]:
        """Return what export.json records of the gate. lm_scale: of lm.onnx, if it is there.

        Raises `UserError` if a limit is exceeded; utterances that differ are printed.
        """
        check_metadata(folder, self.model, self.chunk_frames, int8)
        report: dict[str, Any] = {"run": True, "utterances": len(utterances), **versions("sherpa-onnx"), "float32": {}}
        if int8:
            report["encoder_int8_size"] = self._size(folder)
            report["int8"] = {}
        audio = [padded(u.samples, self.cfg.features.sampling_rate, self.chunk_frames) for u in utterances]
        recipe = self.by_recipe(utterances, audio)
        for method in METHODS_OF_CLIENT:
            float32 = self.by_client(folder, utterances, audio, method)
            report["float32"][method] = self._same(utterances, method, recipe[method], float32)
            if int8:
                rounded = self.by_client(folder, utterances, audio, method, int8=True)
                report["int8"][method] = self._close(utterances, method, float32, rounded)
        return report | self._extras(folder, utterances[:FEW], audio[:FEW], lm_scale)

    def by_recipe(self, utterances: Sequence[Utterance], audio: Sequence[np.ndarray]) -> dict[str, Heard]:
        """Return what the recipe recognises by each method in the frames that the client decodes."""
        device, options = torch.device("cpu"), replace(self.cfg.decode, max_sym_per_frame=1, hotwords=None, by_method={})
        resources = Resources(self.model, self.tokenizer, device, Path(), clean=str)
        recognisers = {method: Recogniser(method, resources, options) for method in METHODS_OF_CLIENT}
        decoder = BatchDecoder(self.model, recognisers, 0, device)
        extractor, rate = make_extractor(self.cfg.features), self.cfg.features.sampling_rate
        order = sorted(range(len(audio)), key=lambda number: -len(audio[number]))
        said: dict[str, list[Said]] = {method: [Said((), ())] * len(audio) for method in METHODS_OF_CLIENT}
        with Progress(len(audio), "gate: recipe", "utt") as bar:
            seconds = (len(audio[number]) / rate for number in order)
            for numbers in pack_by_length(order, seconds, options.max_duration):
                features = [torch.from_numpy(extractor.extract(audio[number], rate)) for number in numbers]
                lens = torch.tensor([frames_decoded(len(x), self.chunk_frames) for x in features])
                inputs = pad_sequence(features, True, PADDING)
                for method, found in decoder.run(inputs, lens, [utterances[number].id for number in numbers]).items():
                    for number, hypothesis in zip(numbers, found, strict=True):
                        said[method][number] = Said(tuple(hypothesis.tokens), tuple(hypothesis.times))
                bar.update(len(numbers))
        return {method: self._heard(utterances, found) for method, found in said.items()}

    def by_client(
        self,
        folder: Path,
        utterances: Sequence[Utterance],
        audio: Sequence[np.ndarray],
        method: str,
        int8: bool = False,
        **more: Any,
    ) -> Heard:
        """Return what sherpa-onnx recognises. more: further arguments of its recogniser."""
        more["max_active_paths"] = self.cfg.decode.beam
        options = recogniser_options(folder, self.cfg.features, method, int8, **more)
        what = f"gate: sherpa-onnx, {'int8' if int8 else 'float32'}, {method}"
        return self._heard(utterances, recognise(options, audio, self.tokenizer, what))

    def _heard(self, utterances: Sequence[Utterance], said: list[Said]) -> Heard:
        texts = [self.tokenizer.decode(found.tokens) for found in said]
        unit = unit_of((u.ref for u in utterances), self.cfg.score.unit)
        errors = sum(word_errors(u.ref, text, unit) for u, text in zip(utterances, texts, strict=True))
        return Heard(said, texts, errors, sum(len(units(u.ref, unit)) for u in utterances), unit)

    def _same(self, utterances: Sequence[Utterance], method: str, recipe: Heard, client: Heard) -> dict[str, Any]:
        """Check float32 and return its entry in the report."""
        different = [i for i, found in enumerate(client.said) if found != recipe.said[i]]
        show(f"float32, {method}", utterances, recipe, client, different)
        most = allowed(DIFFERENT[method], len(utterances))
        if len(different) > most:
            hint = "requirements-export.txt has the versions that agree; --no-gate exports without this check"
            raise UserError(f"{refusal(f'float32, {method}', different, utterances, most)}; {hint}")
        return {"different": len(different), "wer": client.wer, "wer_of_recipe": recipe.wer}

    def _close(self, utterances: Sequence[Utterance], method: str, float32: Heard, int8: Heard) -> dict[str, Any]:
        """Check int8 and return its entry in the report."""
        different = [i for i, text in enumerate(int8.texts) if text != float32.texts[i]]
        show(f"int8, {method}", utterances, float32, int8, different)
        most = allowed(INT8_DIFFERENT, len(utterances))
        hint = "export without --int8, or train the model longer"
        if len(different) > most:
            raise UserError(f"{refusal(f'int8, {method}', different, utterances, most)}; {hint}")
        if int8.errors - float32.errors > max(INT8_WER / 100 * float32.words, 1):
            raise UserError(f"the gate: int8, {method}: {int8} instead of {float32}, more than {INT8_WER} % above; {hint}")
        return {"different": len(different), "wer": int8.wer}

    def _extras(
        self, folder: Path, utterances: Sequence[Utterance], audio: Sequence[np.ndarray], lm_scale: float
    ) -> dict[str, Any]:
        """Check that the client takes the language model and the hotwords; its results with them are its own."""
        report: dict[str, Any] = {}
        for name, int8 in (("lm", False), ("lm.int8", True)):
            if (lm := folder / f"{name}.onnx").exists():
                found = self.by_client(folder, utterances, audio, BEAM, int8, lm=str(lm), lm_scale=lm_scale)
                report[name] = {"utterances": len(utterances), "lm_scale": lm_scale, "wer": found.wer}
        if (hotwords := folder / "hotwords.txt").exists():
            words: dict[str, Any] = {
                "hotwords_file": str(hotwords),
                "modeling_unit": "bpe",
                "bpe_vocab": str(folder / "bpe.vocab"),
            }
            found = self.by_client(folder, utterances, audio, BEAM, **words)
            report["hotwords"] = {"utterances": len(utterances), "wer": found.wer}
        return report

    def _size(self, folder: Path) -> float:
        """Check the size of encoder.int8.onnx, and return it as a share of the float32 encoder."""
        small, large = ((folder / f"encoder{ending}.onnx").stat().st_size for ending in (".int8", ""))
        if small > INT8_SIZE * large + CONVOLUTIONS:
            most = f"more than {INT8_SIZE} of {large} and {CONVOLUTIONS} for the convolutions"
            raise UserError(f"the gate: encoder.int8.onnx has {small} bytes, {most}")
        return round(small / large, 4)


def allowed(share: float, number: int) -> int:
    """Return how many of a number of utterances may differ: the share, or one if the share is above 0."""
    return max(int(share * number), 1) if share else 0


def show(what: str, utterances: Sequence[Utterance], expected: Heard, found: Heard, different: Sequence[int]) -> None:
    """Print the utterances that differ, and the sum."""
    for i in different[:SHOWN]:
        print(f"  {utterances[i].id}: '{expected.texts[i]}' -> '{found.texts[i]}'")
        if expected.texts[i] == found.texts[i]:
            print(f"    at frames {expected.said[i].times} -> {found.said[i].times}")
    print(f"gate: {what}: {len(utterances) - len(different)} of {len(utterances)} utterances equal, {found}")
    if not any(found.texts):
        print(f"warning: gate: {what}: no word was recognised; was the model trained?", file=sys.stderr)


def refusal(what: str, different: Sequence[int], utterances: Sequence[Utterance], most: int) -> str:
    """Return the message of a gate that too many utterances failed."""
    names = first_of([utterances[i].id for i in different])
    return f"the gate: {what}: {len(different)} of {len(utterances)} utterances differ, at most {most} may: {names}"
