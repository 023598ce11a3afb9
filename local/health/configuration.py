"""The doctor's checks of the configuration against the data and the machine."""

from __future__ import annotations

import contextlib
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from local.common.cli import choose_device
from local.common.processes import check_gpus
from local.common.text_files import is_file, iterate_lines
from local.config import named_files, to_dict
from local.config.load import CONF_DIR, load_config
from local.config.methods import GRAPH_SEARCH, METHODS
from local.config.presets import (
    BASIC_TOKENS,
    FEW_WORDS,
    PRESETS,
    Preset,
    Speech,
    batches_per_epoch,
    bearable_tokens,
    preset_for,
    speeds,
)
from local.config.schema import AUTO
from local.corpus.corpus_yaml import load_corpus, other_corpus
from local.corpus.sources import find_sources
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer, lang_dir
from local.decoding.resources import SCORERS, missing_file, scorer_file
from local.health.finding import Check, Finding, Run, error, warning
from local.health.sizes import parameters, vocabulary
from local.training.loggers import check_logger
from local.training.run_length import LEAST, batches_of, warm_up_problem
from local.training.step import make_scaler


class Known(NamedTuple):
    """The least and the most of a key in trainings that worked, and where these are."""

    least: float
    most: float
    source: str

    def problem(self, value: float, below: float, above: float) -> str:
        """Return in words that `value` is more than `below` times smaller, or `above` times larger; "" if it is neither."""
        if self.least / below <= value <= above * self.most:
            return ""
        known = f"{self.least:g}" if self.least == self.most else f"{self.least:g} to {self.most:g}"
        return f"trainings that worked had {known} ({self.source})"


# optim.lr by optim.name. "The study" is studies/optimisers.py: the recogniser at three rates, the best in the middle.
STUDY = "the study of optimisers, docs/gradients.md"
RATES = {
    "eve": Known(1e-3, 5e-3, "conf/ and icefall's LSTM transducers, 0.003"),
    "adam": Known(5e-4, 3e-3, f"{STUDY}, and ESPnet's transducers"),
    "adamw": Known(5e-4, 3e-3, f"{STUDY}, and ESPnet's transducers"),
    "rmsprop": Known(3e-4, 3e-4, STUDY),
    "adagrad": Known(1e-2, 1e-2, STUDY),
    "sgd": Known(1e-3, 1e-3, STUDY),
    "momentum": Known(1e-4, 1e-4, STUDY),
    "scaled_adam": Known(0.04, 0.05, "icefall's Zipformer transducers"),
}
RATE_BELOW, RATE_ABOVE = 10.0, 3.0  # egs/tiny/conf/stress.yaml: 0.01 explodes at times, at 0.02 the encoder is lost at once
STEP_SECONDS = Known(20.0, 6000.0, "conf/preset/minutes.yaml, and icefall's 8 GPUs with 750 s each")
STEP_BELOW, STEP_ABOVE = 4.0, 4.0
FEWEST_BATCHES = 3.5  # of an epoch
VOCABULARY = 2.0  # times the tokens that local/config/presets.py would choose; mini LibriSpeech has 1.8 times


def check_corpus(run: Run) -> Iterator[Finding]:
    """Yield a data folder that holds another corpus."""
    name = load_corpus(run.root / "egs" / run.corpus / "corpus.yaml").name
    if why := other_corpus(run.data_dir, name, run.corpus_dir):
        yield error(f"{run.data_dir} {why}", f"name other folders by --data-dir and --exp-dir, or remove {run.data_dir}")


def check_audio_folder(run: Run) -> Iterator[Finding]:
    """Yield the parts that are not found in --corpus-dir, before the data are prepared."""
    corpus = load_corpus(run.root / "egs" / run.corpus / "corpus.yaml", run.config.data)
    if run.corpus_dir is None or corpus.source != "custom" or (run.data_dir / "manifests").is_dir():
        return
    errors: list[str] = []
    with contextlib.redirect_stdout(io.StringIO()):  # it names what it finds
        find_sources(run.corpus_dir, corpus, errors)
    yield from map(error, errors)


def check_files(run: Run) -> Iterator[Finding]:
    """Yield each key that names a file which does not exist; `check_methods` looks at those of methods."""
    ours = [*(f"decode.{scorer}" for scorer in SCORERS), "augment.musan"]  # stage 0 downloads MUSAN
    if any((run.exp_dir / "checkpoints").glob("*.pt")):
        ours.append("train.init")  # a training that is resumed does not read it
    for key, name in named_files(to_dict(run.config)):
        plain = re.sub(r"\bby_method\.[^.]+\.", "", key)
        if not plain.startswith(tuple(ours)) and not Path(name).exists():
            yield error(f"key '{key}': {name} does not exist", "name another file, or null")


def check_methods(run: Run) -> Iterator[Finding]:
    """Yield each method of decode.methods that lacks a file which no stage makes, or the CTC head; stage decode stops at it."""
    cfg = run.config
    for name in cfg.decode.methods:
        options = cfg.decode.of_method(name)
        of_head = METHODS[name].search == "ctc_greedy_search"
        if cfg.loss.ctc_scale == 0 and (of_head or options.blank_skip):
            key = "decode.methods" if of_head else "decode.blank_skip"
            yield error(f"key '{key}': {name} needs a CTC head, and loss.ctc_scale is 0", "set loss.ctc_scale=0.1 and train")
        terms = METHODS[name].fused + METHODS[name].second_pass
        made = [scorer_file(term.scorer, options, run.exp_dir) in lm_files(run) for term in terms]
        if cfg.lm.train and terms and all(made):
            continue
        if METHODS[name].search == GRAPH_SEARCH:  # stage lm makes the graph
            continue
        if why := missing_file(METHODS[name], options, run.exp_dir, lang_dir(run.data_dir, cfg.lang)):
            yield error(f"decode.methods: {name}: {why}", f"set lm.train=true, or take {name} out of decode.methods")


def lm_files(run: Run) -> list[Path | None]:
    """Return the files that stage lm makes if lm.train is true; None stands for no file."""
    return [None, *(run.exp_dir / "lm" / default for default, _ in SCORERS.values() if default)]


def check_precision(run: Run) -> Iterator[Finding]:
    """Yield a train.precision that this machine does not have."""
    make_scaler(run.config.train.precision, choose_device())
    yield from ()


def check_logging(run: Run) -> Iterator[Finding]:
    """Yield a train.logger that is not installed; `check_packages` looks at TensorBoard."""
    if (name := run.config.train.logger) != "tensorboard":
        check_logger(name)
    yield from ()


def check_processes(run: Run) -> Iterator[Finding]:
    """Yield more processes than GPUs."""
    check_gpus(run.nproc)
    yield from ()


def check_warm_up(run: Run) -> Iterator[Finding]:
    """Yield a warm-up that is longer than the training allows. Only if it is close, the training cuts are read."""
    train = run.config.train
    about = batches_of(train, batches_per_epoch(run.hours, run.config)) if run.hours else 0
    if train.warm_share > 0 or not about or about >= 2 * LEAST * train.warm_step:
        return
    lang = lang_dir(run.data_dir, run.config.lang) / "bpe.model"
    per_epoch = batches_per_epoch(run.hours, run.config)
    if is_file(lang) and (train.batch_seconds or train.max_duration != AUTO):
        per_epoch = AsrDataModule(run.config, run.data_dir, Tokenizer.from_file(lang)).batches_per_epoch()
    if why := warm_up_problem(train, per_epoch):
        yield warning(why) if train.max_steps else error(why)


def step_seconds(run: Run) -> float:
    """Return the seconds of audio of a step of the optimiser; nan for the free memory's."""
    train = run.config.train
    if train.batch_seconds or train.max_duration == AUTO:
        return train.batch_seconds or math.nan
    return float(train.max_duration) * max(1, run.nproc)


def check_batch(run: Run) -> Iterator[Finding]:
    """Yield a batch that holds much of the corpus."""
    seconds, speech = step_seconds(run), 3600 * run.hours * speeds(run.config) * run.config.loss.copies
    if run.hours and (batches := speech / seconds) < FEWEST_BATCHES:  # nan is not less
        what = f"a step takes {seconds:g} s of audio, and an epoch has {speech:.0f} s: about {max(1, round(batches))} steps"
        key = "train.batch_seconds" if run.config.train.batch_seconds else "train.max_duration"
        yield warning(what, f"lower {key}, so that an epoch has 50 steps or more")


def check_batch_seconds(run: Run) -> Iterator[Finding]:
    """Yield a step of the optimiser that is far smaller or larger than any known to work."""
    seconds = step_seconds(run)
    if not math.isnan(seconds) and (known := STEP_SECONDS.problem(seconds, STEP_BELOW, STEP_ABOVE)):
        yield warning(f"a step of the optimiser takes {seconds:g} s of audio; {known}", "set train.batch_seconds")


def check_learning_rate(run: Run) -> Iterator[Finding]:
    """Yield an optim.lr that is far smaller or larger than any known to work."""
    optim = run.config.optim
    if known := RATES[optim.name].problem(optim.lr, RATE_BELOW, RATE_ABOVE):
        yield warning(f"optim.lr={optim.lr:g} with {optim.name}; {known}", f"try optim.lr={RATES[optim.name].most:g}")


def check_average(run: Run) -> Iterator[Finding]:
    """Yield a range of epochs that the training will not have."""
    average, epochs = run.config.average, run.config.train.num_epochs
    if average.unit != "epoch" or run.config.train.max_steps or average.checkpoints:
        return
    if average.last > epochs:
        yield error(f"average.last is {average.last}, and train.num_epochs {epochs}", "set average.last=0, the newest")
    elif average.num > (average.last or epochs):
        what = f"average.num is {average.num}, and the range has only {average.last or epochs} epochs, those of the warm-up too"
        yield warning(what, f"set average.num={max(1, round(0.3 * epochs))}")


def check_vocabulary(run: Run) -> Iterator[Finding]:
    """Yield more tokens than the text bears: most would be rare, and their embeddings hardly trained."""
    path = lang_dir(run.data_dir, run.config.lang) / "transcript.txt"
    if not run.hours or not is_file(path) or run.config.lang.type == "char":
        return
    characters, words = set[str](), set[str]()
    for line in iterate_lines(path):
        characters.update(line)
        words.update(line.split())
    speech = Speech(run.hours, sum(not c.isspace() for c in characters), len(words))
    tokens, bearable = vocabulary(run), bearable_tokens(speech)
    if tokens > VOCABULARY * bearable:
        what = f"{tokens} tokens for {run.hours:.2f} h of speech with {len(words)} different words"
        fix = f"set lang.vocab_size={bearable if speech.words > FEW_WORDS else speech.characters + BASIC_TOKENS}"
        yield warning(f"{what}: this text is enough for about {bearable}", fix)


def check_model_size(run: Run) -> Iterator[Finding]:
    """Yield a model larger than that of the preset for many times the hours: it would learn the data by heart."""
    fitting = PRESETS.index(preset_for(run.hours))
    if not run.hours or fitting == len(PRESETS) - 1:
        return
    tokens, larger = vocabulary(run), PRESETS[fitting + 1]
    here, most = parameters(run.config, tokens), preset_parameters(larger, tokens)
    if here > 1.2 * most:
        preset = PRESETS[fitting]
        what = f"the model has {here / 1e6:.1f} million parameters for {run.hours:.2f} h of speech"
        fits = f"that of conf/preset/{preset.name}.yaml has {preset_parameters(preset, tokens) / 1e6:.1f}"
        yield warning(f"{what}; {fits}", f"include: [preset/{preset.name}.yaml]")


def preset_parameters(preset: Preset, tokens: int) -> int:
    """Return the parameters of a preset's model."""
    return parameters(load_config(CONF_DIR / "preset" / f"{preset.name}.yaml"), tokens)


FIRST_CHECKS: tuple[Check, ...] = (check_corpus, check_audio_folder, check_files)  # those of any configuration
CHECKS: tuple[Check, ...] = (
    check_methods,
    check_precision,
    check_logging,
    check_processes,
    check_warm_up,
    check_batch,
    check_batch_seconds,
    check_learning_rate,
    check_average,
    check_vocabulary,
    check_model_size,
)
