"""The keys of the configuration, their types and limits; conf/base.yaml has the defaults and explains each key.

A new key needs two places: this file (methods.py for sections decode and tune) and conf/base.yaml.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from local.config.limits import (
    Count,
    Duration,
    Epochs,
    File,
    FileName,
    Layers,
    Limits,
    Parts,
    Scale,
    Section,
    Seed,
    Share,
    Size,
    Threads,
    Width,
)
from local.config.methods import METHODS, DecodeConfig, TuneConfig
from local.config.mix import problem_of_mix

AUTO = "auto"  # of train.max_duration: the trainer chooses

GradientControl = Literal["filter", "clip", "none"]
Channel = Literal["first", "mix", "both", "loudest"]


@dataclass
class EncoderConfig(Section):
    num_layers: Layers
    d_model: Width
    rnn_hidden_size: Width
    dim_feedforward: Width
    dropout: Share
    layer_dropout: Share
    balance_prob: Share
    rnn: Literal["lstm", "gru", "rnn"]
    norm: Literal["basic", "layer", "batch", "group", "instance", "none"]
    activation: Literal["double_swish", "relu", "sigmoid", "tanh"]

    def cross_check(self) -> Iterator[tuple[str, str]]:
        if self.rnn_hidden_size < self.d_model:
            yield "rnn_hidden_size", f"must be at least d_model ({self.d_model}): the projection cannot be wider than the cells"
        elif self.rnn != "lstm" and self.rnn_hidden_size != self.d_model:
            yield "rnn_hidden_size", f"must equal d_model ({self.d_model}): rnn '{self.rnn}' has no projection"


@dataclass
class DecoderConfig(Section):
    dim: Width
    context_size: Annotated[int, Limits(1, 1000)]


@dataclass
class JoinerConfig(Section):
    dim: Width


@dataclass
class ModelConfig(Section):
    encoder: EncoderConfig
    decoder: DecoderConfig
    joiner: JoinerConfig


@dataclass
class GradientConfig(Section):
    control: GradientControl
    threshold: Annotated[float, Limits(1e-6, 1e30)]
    clip_norm: Annotated[float, Limits(1e-30, 1e30)]


@dataclass
class LossConfig(Section):
    backend: Literal["native", "k2", "torchaudio", "auto"]
    prune_range: Annotated[int, Limits(2, 10_000)]
    am_scale: Share
    lm_scale: Share
    simple_scale: Scale
    delay_penalty: Annotated[float, Limits(0, 1000)]
    ctc_scale: Scale
    cr_scale: Scale

    @property
    def copies(self) -> int:
        """Return how many augmented copies of each utterance a training batch has."""
        return 2 if self.cr_scale > 0 else 1

    def cross_check(self) -> Iterator[tuple[str, str]]:
        if self.am_scale + self.lm_scale > 1:
            yield "lm_scale", f"am_scale ({self.am_scale}) + lm_scale must not exceed 1"
        if self.backend == "torchaudio" and self.delay_penalty != 0:
            yield "delay_penalty", "must be 0: backend torchaudio has no delay penalty"
        if self.cr_scale > 0 and self.ctc_scale == 0:
            yield "cr_scale", "must be 0 if ctc_scale is 0: it compares outputs of the CTC head; set ctc_scale=0.1, for example"


@dataclass
class OptimConfig(Section):
    name: Literal["eve", "adam", "adamw", "sgd", "momentum", "adagrad", "rmsprop", "scaled_adam"]
    lr: Annotated[float, Limits(0, 1e30)]
    lr_batches: Annotated[float, Limits(0.001, 1e12)]
    lr_epochs: Annotated[float, Limits(0.001, 1e12)]
    weight_decay: Scale
    momentum: Share


@dataclass
class TrainConfig(Section):
    init: File
    init_modules: list[str]
    init_tokens: File
    freeze: list[str]
    num_epochs: Epochs
    max_steps: Count
    batch_seconds: Annotated[float, Limits(0, 1e9)]
    max_duration: Annotated[Any, Limits(0.001, 10**9, may_be_infinite=True)]  # a float, or AUTO: OmegaConf has no such union
    warm_step: Count
    warm_share: Annotated[float, Limits(0, 0.33)]  # the pruned loss has its full weight after twice the warm-up
    average_period: Size
    keep_last: Count
    save_every: Count
    valid_every: Count
    valid_utterances: Count
    log_every: Size
    logger: Literal["tensorboard", "wandb", "mlflow", "none"]
    seed: Seed
    precision: Literal["float32", "bf16", "fp16"]
    lstm: Literal["standard", "merged"]
    max_bad_steps: Count
    num_threads: Threads

    def __post_init__(self) -> None:
        if not isinstance(self.max_duration, bool):
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                self.max_duration = float(self.max_duration)

    def cross_check(self) -> Iterator[tuple[str, str]]:
        value = self.max_duration
        if value != AUTO and not isinstance(value, float):
            yield "max_duration", f"must be a positive number or '{AUTO}'"
        for key in ("init_modules", "init_tokens"):
            if getattr(self, key) and self.init is None:
                yield key, "must be empty without train.init"


@dataclass
class FeaturesConfig(Section):
    type: Literal["on_the_fly", "precomputed"]
    num_mel_bins: Annotated[int, Limits(9, 2000)]
    sampling_rate: Annotated[int, Limits(1000, 1_000_000)]


@dataclass
class AugmentConfig(Section):
    speed_perturb: bool
    spec_augment: bool
    spec_augment_after: Share
    time_warp_factor: Annotated[int, Limits(0, 100_000)]
    num_feature_masks: Annotated[int, Limits(0, 1000)]
    features_mask_size: Annotated[int, Limits(0, 100_000)]
    num_frame_masks: Annotated[int, Limits(0, 1000)]
    frames_mask_size: Annotated[int, Limits(0, 100_000)]
    max_frames_mask_fraction: Share
    musan: File
    musan_prob: Share
    musan_snr: list[Annotated[float, Limits(-200, 200)]]
    silence_prob: Share
    reverb_prob: Share
    gain_prob: Share
    gain_db: list[Annotated[float, Limits(-100, 100)]]
    codec_prob: Share

    def cross_check(self) -> Iterator[tuple[str, str]]:
        for key in ("musan_snr", "gain_db"):
            if len(getattr(self, key)) != 2:
                yield key, "must be two numbers, the lowest and the highest dB"


@dataclass
class DataConfig(Section):
    train_parts: Parts
    dev_parts: Parts
    test_parts: Parts
    mix: Annotated[dict[str, float] | None, Limits(0, 1)]
    mix_tokens: Literal["first", "all"]
    num_workers: Annotated[int, Limits(-1, 1024)]
    num_buckets: Annotated[int, Limits(1, 10_000)]
    shuffle_shards: Annotated[int, Limits(1, 100_000)]
    shard_cache: Annotated[float, Limits(0.001, 1e9)]
    channel: Channel
    min_utterance_seconds: Annotated[float, Limits(0, 1e9)]
    max_utterance_seconds: Duration
    max_lost: Share
    max_wait: Annotated[float, Limits(0.001, 1_000_000)]

    def cross_check(self) -> Iterator[tuple[str, str]]:
        if self.mix is not None and (why := problem_of_mix(self.mix)):
            yield "mix", why


def lang_folder(bpe_model: object, kind: object, vocab_size: int) -> str:
    """Return the name of the folder of tokens for these values of section lang; `kind` is lang.type."""
    return "lang_given" if bpe_model else "lang_char" if kind == "char" else f"lang_bpe_{vocab_size}"


@dataclass
class LangConfig(Section):
    bpe_model: File
    type: Literal["bpe", "char"]
    vocab_size: Annotated[int, Limits(4, 1_000_000)]
    byte_fallback: bool
    character_coverage: Annotated[float, Limits(0.98, 1)]  # what sentencepiece takes
    normalise: Literal["upper", "lower", "none"]
    rules: str | None

    @property
    def tokens(self) -> str:
        """The name of the tokens in summary.json: their number, "char" for characters, "given" for those of another model."""
        return "given" if self.bpe_model else "char" if self.type == "char" else str(self.vocab_size)

    @property
    def folder(self) -> str:
        """The name of the folder of what depends on the tokens; `name_tokens` of local/stages.sh has the same."""
        return lang_folder(self.bpe_model, self.type, self.vocab_size)


@dataclass
class LmConfig(Section):
    train: bool
    text: File
    dim: Width
    hidden: Width
    num_layers: Layers
    dropout: Share
    lr: Annotated[float, Limits(1e-12, 1e30)]
    batch_tokens: Annotated[int, Limits(1, 10**9)]
    max_epochs: Epochs
    patience: Size


@dataclass
class AverageConfig(Section):
    mode: Literal["running", "plain"]
    unit: Literal["epoch", "step"]
    last: Count
    num: Size
    checkpoints: list[Annotated[str, FileName()]]


@dataclass
class ScoreConfig(Section):
    unit: Literal["word", "char", "auto"]


@dataclass
class AblationConfig(Section):
    controls: list[GradientControl]
    seeds: list[Seed]
    num_epochs: Epochs
    jobs: Threads
    method: str

    def cross_check(self) -> Iterator[tuple[str, str]]:
        if self.method not in METHODS:
            yield "method", f"must be one of {', '.join(METHODS)}"
        for key in ("controls", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                yield key, "must be a list of at least one value, without repetitions"


@dataclass
class Config(Section):
    model: ModelConfig
    gradient: GradientConfig
    loss: LossConfig
    optim: OptimConfig
    train: TrainConfig
    features: FeaturesConfig
    augment: AugmentConfig
    data: DataConfig
    lang: LangConfig
    lm: LmConfig
    average: AverageConfig
    decode: DecodeConfig
    tune: TuneConfig
    score: ScoreConfig
    ablation: AblationConfig

    def cross_check(self) -> Iterator[tuple[str, str]]:
        enc = self.model.encoder
        if self.train.lstm == "merged" and (enc.rnn != "lstm" or enc.rnn_hidden_size == enc.d_model):
            what = "model.encoder.rnn=lstm and model.encoder.rnn_hidden_size above model.encoder.d_model"
            yield "train.lstm", f"merges the LSTM's projection, which needs {what}; set it to standard"
        for key in ("reverb_prob", "gain_prob", "codec_prob"):
            if self.features.type == "precomputed" and getattr(self.augment, key) > 0:
                yield (
                    f"augment.{key}",
                    "changes audio, but features.type is precomputed; set features.type=on_the_fly, or this key to 0",
                )
