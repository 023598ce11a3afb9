"""Stage "tune": the averaging range, blank penalty and scales with the lowest WER on the dev parts.

local/tune.py --checkpoint exp/tiny/averaged.pt --data-dir data/tiny --exp-dir exp/tiny [--conf FILE] [tune.lm_scale=[0.1,0.2]
    ...]

Tries every combination of the lists of section `tune`: average_num and blank_penalty by greedy search (without such lists that
is tried as it is), then, with the best of these, the scales of each of decode.methods that has some. Of equal WERs the smaller
values win. What the command line gives a value (decode.lm_scale=0.3) is not tuned. It writes EXP/tune.tsv, every point that was
tried; EXP/tuned.yaml, which local/decode.py takes; and where average_num is tuned EXP/tuned.pt, the average of that range.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path

from local.artifacts.checkpoint import load_averaged
from local.artifacts.tuned_settings import keys_of, save_tuned
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.common.out_of_memory import in_halves_on_oom
from local.common.progress import Progress
from local.config import load_config
from local.config.methods import METHODS, TUNED
from local.config.schema import DecodeConfig, TuneConfig
from local.data.datamodule import AsrDataModule
from local.decoding.batch_decoder import Decoder
from local.decoding.recogniser import Recogniser
from local.decoding.resources import Resources
from model.transducer import Transducer

import kaldialign
import torch

AVERAGE = Path(__file__).with_name("average.py")
GREEDY = "greedy_search"


@dataclass
class Encoded:
    """A batch after the encoder, on the CPU: out (N, T, C), lens (N,), and its references and ids."""

    out: torch.Tensor
    lens: torch.Tensor
    texts: list[str]
    ids: list[str]


@dataclass
class Point:
    """What was tried for one method, and the word errors that it made."""

    method: str
    values: dict[str, float]
    errors: int
    words: int

    @property
    def rank(self) -> tuple[float, ...]:
        """The lowest is the best."""
        return (self.errors, *self.values.values())

    def __str__(self) -> str:
        values = " ".join(f"{key}={value:g}" for key, value in self.values.items())
        return f"{self.method} {values}: WER {100 * self.errors / self.words:.2f} %"


def lists(tune: TuneConfig, given: set[str]) -> dict[str, list[float]]:
    """The lists that are to be gone through, ascending: those with values whose key is not given."""
    named = {f.name: sorted(set(getattr(tune, f.name))) for f in fields(tune)}
    return {name: values for name, values in named.items() if values and TUNED[name] not in given}


def grid(names: Iterable[str], values: dict[str, list[float]]) -> Iterator[dict[str, float]]:
    """Every combination of the lists of these names."""
    keys = [name for name in names if name in values]
    for point in product(*(values[key] for key in keys)):
        yield dict(zip(keys, point, strict=True))


class Tuner:
    """The dev parts and what is tried on them. given: keys that the command line has values for."""

    def __init__(self, data: AsrDataModule, options: DecodeConfig, given: set[str], device: torch.device) -> None:
        self.data, self.options, self.given, self.device = data, options, given, device
        self.points: list[Point] = []

    def encode(self, model: Transducer) -> list[Encoded]:
        """All dev parts. `UserError` when they hold no word that can be recognised."""
        decoder = Decoder(model, {}, self.options.tail_frames, self.device)
        batches = []
        for part in self.data.corpus.dev:
            loader = self.data.test_dataloader(part)
            with Progress(loader.num_cuts, f"encoding {part}", "utt") as bar:
                for batch in loader:
                    x, lens = batch.inputs, batch.input_lens

                    def work(rows: slice, x: torch.Tensor = x, lens: torch.Tensor = lens) -> tuple[torch.Tensor, torch.Tensor]:
                        out, out_lens = decoder.encode(x[rows, : int(lens[rows].max())], lens[rows])
                        return out.cpu(), out_lens.cpu()

                    first = 0
                    for out, out_lens in in_halves_on_oom(work, batch.ids, self.device):
                        rows = slice(first, first + len(out))
                        batches.append(Encoded(out, out_lens, batch.texts[rows], batch.ids[rows]))
                        first += len(out)
                    bar.update(len(batch.ids))
        if not any(text.split() for batch in batches for text in batch.texts):
            raise UserError(f"the dev parts {', '.join(self.data.corpus.dev)} hold no word to tune on")
        return batches

    def try_point(self, recogniser: Recogniser, batches: Sequence[Encoded], method: str, values: dict[str, float]) -> Point:
        """Decodes, counts and notes down."""
        decode = self.data.tokenizer.decode
        errors = words = 0
        for batch in batches:

            def work(rows: slice, batch: Encoded = batch) -> list[list[str]]:
                out, lens = batch.out[rows].to(self.device), batch.lens[rows]
                return [decode(h.tokens).split() for h in recogniser(out, lens, batch.texts[rows])]

            hyps = [hyp for part in in_halves_on_oom(work, batch.ids, self.device) for hyp in part]
            for text, hyp in zip(batch.texts, hyps, strict=True):
                errors += kaldialign.edit_distance(text.split(), hyp)["total"]
                words += len(text.split())
        self.points.append(Point(method, values, errors, words))
        print(f"tune: {self.points[-1]}", flush=True)
        return self.points[-1]

    def scales(
        self, resources: Resources, batches: Sequence[Encoded], values: dict[str, list[float]]
    ) -> dict[str, dict[str, float]]:
        """`by_method` with the best scales of each method that has any of `values`."""
        chosen = {}
        for method in self.options.methods:
            found = []
            names = [name for name in METHODS[method].scales if f"decode.by_method.{method}.{name}" not in self.given]
            for point in grid(names, values):
                own = {**self.options.by_method.get(method, {}), **point}
                options = replace(self.options, by_method={**self.options.by_method, method: own})
                if point:
                    found.append(self.try_point(Recogniser(method, resources, options), batches, method, point))
            if found:
                chosen[method] = min(found, key=lambda p: p.rank).values
        return chosen

    def table(self) -> str:
        """Every point, tab-separated, in the order in which they were tried."""
        head = ["method", *TUNED, "errors", "words", "wer"]
        lines = ["\t".join(head)]
        for p in self.points:
            values = [f"{p.values[name]:g}" if name in p.values else "" for name in TUNED]
            lines.append("\t".join([p.method, *values, str(p.errors), str(p.words), f"{100 * p.errors / p.words:.4f}"]))
        return "\n".join(lines) + "\n"


def average(exp_dir: Path, num: int, conf: str | None, overrides: Sequence[str]) -> Path:
    """Makes the average of `num` epochs by local/average.py; -> its file. `UserError` where that is not possible."""
    path = exp_dir / f".tune-{os.getpid()}-{num}.pt"
    command = [sys.executable, str(AVERAGE), "--exp-dir", str(exp_dir), "--output", str(path)]
    command += ["--conf", conf] if conf else []
    command += [o for o in overrides if o.startswith("average.")] + [f"average.num={num}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"tune.average_num: {num}: {done.stderr.strip().removeprefix('error: ')}")
    return path


def tune(args: argparse.Namespace) -> None:
    """The program's work."""
    model, cfg, tokenizer = load_averaged(args.checkpoint, args.overrides, args.conf)
    if args.conf:
        cfg.tune = load_config(args.conf, args.overrides).tune
    given = keys_of(args.overrides)
    values = lists(cfg.tune, given)
    if cfg.decode.num_threads:
        torch.set_num_threads(cfg.decode.num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tuner = Tuner(AsrDataModule(cfg, args.data_dir, tokenizer), cfg.decode, given, device)

    def resources(model: Transducer) -> Resources:
        return Resources(model, tokenizer, device, args.exp_dir, args.data_dir)

    made: dict[int, Path] = {}
    found: list[tuple[Point, Transducer, list[Encoded]]] = []
    nums: list[int | None] = [int(n) for n in values.get("average_num", [])]
    try:
        for num in nums or [None]:
            if num is not None:
                made[num] = average(args.exp_dir, num, args.conf, args.overrides)
                model = load_averaged(made[num], args.overrides, args.conf)[0]
            batches = tuner.encode(model.to(device))
            of_range = {} if num is None else {"average_num": float(num)}
            points = []
            for point in grid(["blank_penalty"], values):
                recogniser = Recogniser(GREEDY, resources(model), with_penalty(cfg.decode, point))
                points.append(tuner.try_point(recogniser, batches, GREEDY, {**of_range, **point}))
            # Only the best range's encoder outputs are kept.
            found = sorted([*found, (min(points, key=lambda p: p.rank), model, batches)], key=lambda f: f[0].rank)[:1]
        best, model, batches = found[0]
        tuner.options = with_penalty(cfg.decode, best.values)
        by_method = tuner.scales(resources(model), batches, values)
        save(args.exp_dir, tuner, best.values, by_method, made)
    finally:
        for path in made.values():
            path.unlink(missing_ok=True)


def with_penalty(options: DecodeConfig, values: dict[str, float]) -> DecodeConfig:
    """`options` with the blank penalty of `values` where these have one."""
    return replace(options, blank_penalty=values.get("blank_penalty", options.blank_penalty))


def save(
    exp_dir: Path, tuner: Tuner, values: dict[str, float], by_method: dict[str, dict[str, float]], made: dict[int, Path]
) -> None:
    """The files: tune.tsv, tuned.pt where an averaging range was chosen, tuned.yaml at last."""
    with atomic_write(exp_dir / "tune.tsv") as tmp:
        tmp.write_text(tuner.table(), encoding="utf-8")
    chosen = dict(values)
    num = chosen.pop("average_num", None)
    if num is None:
        (exp_dir / "tuned.pt").unlink(missing_ok=True)
    else:
        os.replace(made[int(num)], exp_dir / "tuned.pt")
    save_tuned(exp_dir / "tuned.yaml", {**chosen, "by_method": by_method}, {} if num is None else {"num": int(num)})
    print(f"{exp_dir / 'tuned.yaml'}: best of {len(tuner.points)} points")


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="averaged.pt; for what average_num does not say")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--conf", help="takes sections `decode`, `tune` and `average` from this YAML, not the checkpoint's")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    tune(parser.parse_args(argv))


if __name__ == "__main__":
    main()
