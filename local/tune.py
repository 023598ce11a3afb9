"""Stage "tune": choose the averaging range, blank penalty and scales with the lowest error rate on the dev parts.

.venv/bin/python -m local.tune --checkpoint exp/tiny/averaged.pt --data-dir data/tiny --exp-dir exp/tiny [--conf FILE]
    [tune.lm_scale=[0.1,0.2] ...]

First it tries all combinations of average_num and blank_penalty of section `tune` by greedy search; without such lists,
greedy search is tried once. Then, with the best of these, all combinations of the scales of each of decode.methods that
has some.
Of equal rates the smaller values win. A key given on the command line (decode.lm_scale=0.3) is not tuned. It writes
EXP/tune.tsv, which lists every point; EXP/tuned.yaml, which local/decode.py uses; and, if average_num is tuned,
EXP/tuned.pt, the average over the best range.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

from local.artifacts.averaging import make_average
from local.artifacts.checkpoint import load_averaged, model_from, save_file
from local.artifacts.tuned_settings import keys_of, save_tuned
from local.common.cli import choose_device, make_parser, program
from local.common.csv_table import write_table
from local.common.errors import UserError
from local.common.locks import reads, writes
from local.common.signals import held_back
from local.config.methods import METHODS, TUNED
from local.config.schema import AverageConfig, DecodeConfig, TuneConfig
from local.data.datamodule import AsrDataModule
from local.data.text import TextNormaliser
from local.data.tokenizer import lang_dir
from local.decoding.batch_decoder import BatchDecoder, Encoded, search, with_progress
from local.decoding.feature_floor import ensure_floor
from local.decoding.known_text import check_known
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from local.scoring.align import RATES, Unit, unit_of, units, word_errors
from model.transducer import Transducer

import torch

GREEDY = "greedy_search"
Lists = dict[str, list[float]]  # the values to try, by their names in section `tune`
EncodedParts = list[tuple[Encoded, list[str]]]  # on the CPU, each with its references


@dataclass
class Point:
    """Values that were tried for one method, and the errors that it made with them; `words` are what `unit` counts."""

    method: str
    values: dict[str, float]
    errors: int
    words: int
    unit: Unit = "word"

    @property
    def rank(self) -> tuple[float, ...]:
        """The lowest is the best."""
        return (self.errors, *self.values.values())

    def __str__(self) -> str:
        values = " ".join(f"{key}={value:g}" for key, value in self.values.items())
        return f"{self.method} {values}: {RATES[self.unit]} {100 * self.errors / self.words:.2f} %"


def lists(tune: TuneConfig, given: set[str]) -> Lists:
    """Return the lists to try, each ascending: those with values whose key is not in `given`."""
    named = {f.name: sorted(set(getattr(tune, f.name))) for f in fields(tune)}
    return {name: values for name, values in named.items() if values and TUNED[name] not in given}


def grid(names: Iterable[str], values: Lists) -> Iterator[dict[str, float]]:
    """Yield every combination of the lists with these names."""
    chosen = {name: values[name] for name in names if name in values}
    for point in product(*chosen.values()):
        yield dict(zip(chosen, point, strict=True))


@dataclass
class Trial:
    """One average on the dev parts, with its best point by greedy search; `content` of its file if this program made it."""

    best: Point
    model: Transducer
    parts: EncodedParts
    content: dict[str, Any] | None


class Tuner:
    """The dev parts and the points tried on them."""

    def __init__(
        self, data: AsrDataModule, options: DecodeConfig, given: set[str], device: torch.device, exp_dir: Path
    ) -> None:
        """Keep the data, section `decode`, the keys that the command line gives, the device and the experiment's folder."""
        self.data, self.options, self.given, self.device, self.exp_dir = data, options, given, device, exp_dir
        self.points: list[Point] = []
        self.unit = unit_of(data.valid_texts(), data.cfg.score.unit)

    def resources(self, model: Transducer) -> Resources:
        """Return what methods need besides `model`."""
        lang = self.data.cfg.lang
        folder, clean = lang_dir(self.data.data_dir, lang), TextNormaliser(lang)
        return Resources(model, self.data.tokenizer, self.device, self.exp_dir, folder, clean=clean)

    def encode(self, model: Transducer) -> EncodedParts:
        """Encode all dev parts. Raises `UserError` if there is none, or their references have no word."""
        if not self.data.corpus.dev:
            raise UserError("section tune needs a dev part, and data.dev_parts is empty; name one, or empty the lists of tune")
        decoder = BatchDecoder(model, {}, self.options.tail_frames, self.device)
        found: EncodedParts = []
        for part in self.data.corpus.dev:
            for batch in with_progress(self.data.test_dataloader(part), "encoding", part):
                texts = dict(zip(batch.ids, batch.texts, strict=True))
                for e in decoder.encode(batch.inputs, batch.input_lens, batch.ids):
                    found.append((Encoded(e.out.cpu(), e.lens.cpu(), e.ids), [texts[i] for i in e.ids]))
        if not any(text.split() for _, texts in found for text in texts):
            raise UserError(f"the dev parts {', '.join(self.data.corpus.dev)} have no word to tune on")
        return found

    def try_point(self, recogniser: Recogniser, parts: EncodedParts, method: str, values: dict[str, float]) -> Point:
        """Decode with `values`, count the errors, and record both."""
        errors = words = 0
        for encoded, texts in parts:
            for text, hypothesis in zip(texts, search(recogniser, encoded, self.device), strict=True):
                errors += word_errors(text, self.data.tokenizer.decode(hypothesis.tokens), self.unit)
                words += len(units(text, self.unit))
        self.points.append(Point(method, values, errors, words, self.unit))
        print(f"tune: {self.points[-1]}", flush=True)
        return self.points[-1]

    def try_average(self, model: Transducer, content: dict[str, Any] | None, num: int | None, values: Lists) -> Trial:
        """Try an average with each blank penalty by greedy search. num: its average.num if that is tuned."""
        parts, resources = self.encode(model), self.resources(model)
        of_range = {} if num is None else {"average_num": float(num)}
        points = []
        for point in grid(["blank_penalty"], values):
            recogniser = Recogniser(GREEDY, resources, replace(self.options, **point))  # type: ignore[arg-type]
            points.append(self.try_point(recogniser, parts, GREEDY, {**of_range, **point}))
        return Trial(min(points, key=lambda p: p.rank), model, parts, content)

    def recognisers(self, method: str, resources: Resources, values: Lists) -> Iterator[tuple[Recogniser, dict[str, float]]]:
        """Yield a method with each combination of its scales; nothing if none of `values` is a scale of it."""
        names = [name for name in METHODS[method].scales if f"decode.by_method.{method}.{name}" not in self.given]
        for point in grid(names, values):
            own = {**self.options.by_method.get(method, {}), **point}
            options = replace(self.options, by_method={**self.options.by_method, method: own})
            if point:
                yield Recogniser(method, resources, options), point

    def check(self, model: Transducer, values: Lists) -> None:
        """Raise `UserError` if a file of a method is missing or does not fit, or if a method refuses a value."""
        resources = self.resources(model)
        for method in self.options.methods:
            for _ in self.recognisers(method, resources, values):
                pass

    def scales(self, best: Trial, values: Lists) -> dict[str, dict[str, float]]:
        """Return `by_method` with the best scales of each method that has any of `values`."""
        chosen, resources = {}, self.resources(best.model)
        for method in self.options.methods:
            found = self.recognisers(method, resources, values)
            if points := [self.try_point(recogniser, best.parts, method, point) for recogniser, point in found]:
                chosen[method] = min(points, key=lambda p: p.rank).values
        return chosen


def average_of(folder: Path, options: AverageConfig, num: int) -> dict[str, Any]:
    """Return the content of the average with average.num=`num`. Raises `UserError` naming key and value."""
    try:
        return make_average(folder, replace(options, num=num))
    except UserError as e:
        raise UserError(f"key 'tune.average_num': no average with the value {num}: {e}") from None


def save(exp_dir: Path, tuner: Tuner, best: Trial, by_method: dict[str, dict[str, float]]) -> None:
    """Write tune.tsv, then tuned.pt if an averaging range was chosen, and tuned.yaml last."""
    rows = [
        {"method": p.method, **p.values, "errors": p.errors, "words": p.words, "wer": f"{100 * p.errors / p.words:.4f}"}
        for p in tuner.points
    ]
    write_table(exp_dir / "tune.tsv", ["method", *TUNED, "errors", "words", "wer"], rows, delimiter="\t")
    chosen = dict(best.best.values)
    num = chosen.pop("average_num", None)
    with held_back():  # the two belong together
        if best.content is None:
            (exp_dir / "tuned.pt").unlink(missing_ok=True)
        else:
            save_file(best.content, exp_dir / "tuned.pt")
        save_tuned(exp_dir / "tuned.yaml", {**chosen, "by_method": by_method}, {} if num is None else {"num": int(num)})
    print(f"{exp_dir / 'tuned.yaml'}: best of {len(tuner.points)} points")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt; used if average_num is not tuned")
    args = parser.parse_intermixed_args(argv)
    writes(args.exp_dir)
    reads(args.data_dir)
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    given, folder, device = keys_of(args.overrides), args.exp_dir / "checkpoints", choose_device(cfg.decode.num_threads)
    values = lists(cfg.tune, given)
    data = AsrDataModule(cfg, args.data_dir, tokenizer)
    check_known(data.valid_texts(), tokenizer, args.checkpoint, args.data_dir)
    tuner = Tuner(data, cfg.decode, given, device, args.exp_dir)
    nums = [int(n) for n in values.get("average_num", [])]
    # Check all values before decoding: an error at the last one would lose the results of the others.
    for num in nums:
        average_of(folder, cfg.average, num)
    tuner.check(model.to(device), values)
    ensure_floor(model, cfg, tokenizer, args.checkpoint, args.data_dir)
    floor = model.encoder.feature_floor  # of the training: all averages have the same
    best = None if nums else tuner.try_average(model, None, None, values)
    for num in nums:
        content = average_of(folder, cfg.average, num)
        model = model_from(content, folder, args.overrides, args.conf)[0].to(device)
        model.encoder.feature_floor = floor
        trial = tuner.try_average(model, content, num, values)
        if best is None or trial.best.rank < best.best.rank:
            best = trial  # only the best encoder output is kept
    assert best is not None
    tuner.options = replace(cfg.decode, blank_penalty=best.best.values.get("blank_penalty", cfg.decode.blank_penalty))
    save(args.exp_dir, tuner, best, tuner.scales(best, values))


if __name__ == "__main__":
    main()
