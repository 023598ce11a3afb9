"""Choose a configuration by the hours of speech, its text and the machine: a preset and a few keys."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from local.config.load import CONF_DIR, load_config
from local.config.schema import AUTO, Config

SPEEDS_WITH_COPIES = 3  # augment.speed_perturb trains on each utterance at three speeds
BASIC_TOKENS = 4  # <blk>, <sos/eos>, <unk> and the mark of a word's beginning, besides one token per character
MOST_TOKENS = 500  # of an alphabet, as in the published model
FEW_WORDS = 200  # with fewer different words, tokens are single characters; see `choose_tokens`
MOST_EPOCHS = 300
EPOCHS_ON_CPU = 10  # for more speech than a CPU should have


@dataclass(frozen=True)
class Preset:
    """A file conf/preset/<name>.yaml; its train.num_epochs is the least.

    most_hours: up to which it is chosen. updates: batches that the training needs at least; epochs are added to reach them.
    least_gib: memory of the GPU in GiB that its model needs; 0: no GPU is needed. gpu_seconds: seconds of a training per hour
    of speech on a GPU, cpu_seconds: on one core (times the number of cores, up to 8). Both are estimates.
    """

    name: str
    most_hours: float
    updates: int
    least_gib: float
    gpu_seconds: float
    cpu_seconds: float = math.inf


# The seconds come from RESULTS.md and egs/yesno/RESULTS.md: `tiny` on two cores of an EPYC (338 s for 7 epochs of 1.69 h) and
# on an H100 (11 s per epoch), the published model on an H100 (0.34 s per step of 480 s).
PRESETS = (
    Preset("minutes", 0.5, 1000, 0, 7.0, 20.0),
    Preset("hours", 20, 3000, 0, 7.0, 57.0),
    Preset("hundred_hours", 200, 0, 4, 4.0),
    Preset("thousand_hours", math.inf, 0, 8, 4.0),
)


@dataclass(frozen=True)
class Speech:
    """The training speech: its hours, and the numbers of different characters (without spaces) and words of its text.

    syllables: whether most of the text is in a script that has a character for a syllable: Chinese, Japanese, Korean.
    """

    hours: float
    characters: int
    words: int
    syllables: bool = False


@dataclass(frozen=True)
class Machine:
    """The number of CPU cores, and the memory of the GPU in GiB (None: no GPU)."""

    cores: int
    gpu_gib: float | None = None

    def __str__(self) -> str:
        """Describe it in words."""
        gpu = "without a GPU" if self.gpu_gib is None else f"with a GPU of {self.gpu_gib:.0f} GiB"
        return f"{self.cores} CPU core{'s' if self.cores > 1 else ''} {gpu}"


@dataclass(frozen=True)
class Choice:
    """A preset, why it is chosen, and the keys that are computed: dotted name -> value and reason."""

    preset: Preset
    reason: str
    keys: dict[str, tuple[Any, str]]


def choose(speech: Speech, machine: Machine) -> Choice:
    """Return the choice for a corpus and a machine."""
    hours = speech.hours
    fitting = [p for p in PRESETS if p.least_gib <= (machine.gpu_gib or 0)]
    by_hours = preset_for(hours)
    preset = by_hours if by_hours in fitting else fitting[-1]
    lowest = max((p.most_hours for p in PRESETS if p.most_hours <= hours), default=0)
    reason = f"for {lowest:g} to {preset.most_hours:g} h" if preset.most_hours < math.inf else f"for more than {lowest:g} h"
    if preset is not by_hours:
        gpu = f"{by_hours.least_gib:g} GiB" if machine.gpu_gib else ""
        reason = f"a larger model, {by_hours.name}, needs a GPU{' of ' + gpu if gpu else ''}"
    cfg = load_config(CONF_DIR / "preset" / f"{preset.name}.yaml")
    keys: dict[str, tuple[Any, str]] = {}
    if speech.syllables:
        why = f"a token for each of the {speech.characters} different characters, most of which are a syllable"
        keys["lang.type"] = "char", f"{why}; many need many hours of speech"
    else:
        keys["lang.vocab_size"] = choose_tokens(speech)
    per_epoch = batches_per_epoch(hours, cfg)
    epochs, why = cfg.train.num_epochs, "as in the preset"
    if preset is not by_hours and machine.gpu_gib is None:
        epochs, why = EPOCHS_ON_CPU, "a CPU takes long for so much speech"
    elif (needed := math.ceil(preset.updates / per_epoch)) > epochs:
        epochs, why = needed, f"so that the training has at least {preset.updates}"
        if needed > MOST_EPOCHS:
            epochs, why = MOST_EPOCHS, f"the most epochs, though {preset.updates} batches would be better"
    total = epochs * per_epoch
    keys["train.num_epochs"] = epochs, f"about {per_epoch} batches each, {total} in all; {why}"
    most = load_config().optim.lr_batches
    keys["optim.lr_batches"] = min(float(round(total / 3)), most), f"a third of all batches, at most {most:g}"
    keys["optim.lr_epochs"] = round(0.4 * epochs, 1), "0.4 of the epochs"
    keys["average.num"] = max(1, min(load_config().average.num, round(0.3 * epochs))), "epochs to average"
    if features := _features(hours, cfg):
        keys["features.type"] = features
    return Choice(preset, reason, keys)


def choose_tokens(speech: Speech) -> tuple[int, str]:
    """Return lang.vocab_size and the reason.

    If a word is one token, saying it twice leaves the decoder's context as it was, so that the encoder alone must tell one
    emission from two; repeated words are then lost. A few words that fill the corpus would all become tokens.
    """
    least = speech.characters + BASIC_TOKENS
    if speech.words <= FEW_WORDS:
        return least, f"single characters: with only {speech.words} different words, words that are said twice need them"
    tokens = max(least, min(bearable_tokens(speech), MOST_TOKENS))
    return tokens, f"{speech.characters} different characters; more speech allows more tokens"


def bearable_tokens(speech: Speech) -> int:
    """Return how many tokens the text of so much speech bears: one per character, and 35 at 1 h, 350 at 100 h."""
    return speech.characters + BASIC_TOKENS + round(35 * math.sqrt(speech.hours))


def preset_for(hours: float) -> Preset:
    """Return the preset for so many hours of speech on a machine that has a large GPU."""
    return next(p for p in PRESETS if hours < p.most_hours)


def batches_per_epoch(hours: float, cfg: Config) -> int:
    """Return about how many steps of the optimiser an epoch over `hours` of speech has, for one process."""
    limit = cfg.train.max_duration if cfg.train.max_duration != AUTO else load_config().train.max_duration
    size = cfg.train.batch_seconds or limit
    return max(1, round(3600 * hours * speeds(cfg) * cfg.loss.copies / size))


def speeds(cfg: Config) -> int:
    """Return at how many speeds each utterance is used."""
    return SPEEDS_WITH_COPIES if cfg.augment.speed_perturb else 1


def feature_gigabytes(hours: float, cfg: Config) -> float:
    """Return the size of the stored features of `hours` of training speech."""
    return 0.057 * speeds(cfg) * hours


def _features(hours: float, cfg: Config) -> tuple[str, str] | None:
    """Return features.type and the reason if stored features would take much disk: 0.17 GB per hour of speech."""
    gigabytes = feature_gigabytes(hours, cfg)
    if cfg.features.type == "precomputed" and gigabytes > 20:
        return "on_the_fly", f"stored features would take {gigabytes:.0f} GB"
    return None


def expected_seconds(hours: float, cfg: Config, preset: Preset, machine: Machine) -> float:
    """Return a rough estimate of the seconds that a training with `cfg`, made from `preset`, takes."""
    per_hour = preset.gpu_seconds if machine.gpu_gib is not None else preset.cpu_seconds / min(machine.cores, 8)
    share = cfg.train.max_steps / (batches_per_epoch(hours, cfg) * cfg.train.num_epochs)
    return hours * speeds(cfg) * cfg.loss.copies * cfg.train.num_epochs * per_hour * (share if 0 < share < 1 else 1)


def as_yaml(choice: Choice, about: str) -> str:
    """Return the choice as a configuration with its reasons as comments; `about` is its first comment."""
    lines = [f"# {about}", f"include: [preset/{choice.preset.name}.yaml]  # {choice.reason}"]
    sections: dict[str, list[str]] = {}
    for key, (value, why) in choice.keys.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, []).append(f"  {name}: {value}  # {why}")
    for section, found in sections.items():
        lines += [f"{section}:", *found]
    return "\n".join(lines) + "\n"
