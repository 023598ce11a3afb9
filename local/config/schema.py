"""The configuration's keys and their types; conf/base.yaml has the defaults and says what each means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

AUTO = "auto"  # of train.max_duration: the trainer chooses


@dataclass
class EncoderConfig:
    num_layers: int
    d_model: int
    rnn_hidden_size: int
    dim_feedforward: int
    dropout: float
    layer_dropout: float
    balance_prob: float
    rnn: str
    norm: str
    activation: str


@dataclass
class DecoderConfig:
    dim: int
    context_size: int


@dataclass
class JoinerConfig:
    dim: int


@dataclass
class ModelConfig:
    encoder: EncoderConfig
    decoder: DecoderConfig
    joiner: JoinerConfig


@dataclass
class GradientConfig:
    control: str
    threshold: float
    clip_norm: float


@dataclass
class LossConfig:
    backend: str
    prune_range: int
    am_scale: float
    lm_scale: float
    simple_scale: float
    delay_penalty: float


@dataclass
class OptimConfig:
    name: str
    lr: float
    lr_batches: float
    lr_epochs: float
    weight_decay: float
    momentum: float


@dataclass
class TrainConfig:
    num_epochs: int
    max_steps: int
    batch_seconds: float
    max_duration: Any  # a float, or AUTO
    warm_step: int
    average_period: int
    keep_last: int
    save_every: int
    valid_every: int
    log_every: int
    seed: int
    precision: str
    max_bad_steps: int
    num_threads: int


@dataclass
class FeaturesConfig:
    type: str
    num_mel_bins: int
    sampling_rate: int


@dataclass
class AugmentConfig:
    speed_perturb: bool
    spec_augment: bool
    time_warp_factor: int
    num_feature_masks: int
    features_mask_size: int
    num_frame_masks: int
    frames_mask_size: int
    max_frames_mask_fraction: float
    musan: str | None
    musan_prob: float
    musan_snr: list[float]


@dataclass
class DataConfig:
    train_parts: list[str] | None
    dev_parts: list[str] | None
    test_parts: list[str] | None
    num_workers: int
    num_buckets: int
    shuffle_shards: int
    shard_cache: float
    min_duration: float
    max_duration: float


@dataclass
class LangConfig:
    vocab_size: int
    character_coverage: float


@dataclass
class LmConfig:
    train: bool
    text: str | None
    dim: int
    hidden: int
    num_layers: int
    dropout: float
    lr: float
    batch_tokens: int
    max_epochs: int
    patience: int


@dataclass
class AverageConfig:
    mode: str
    unit: str
    last: int
    num: int
    checkpoints: list[str]


@dataclass
class DecodeConfig:
    methods: list[str]
    max_duration: float
    tail_frames: int
    max_utterances: int
    max_sym_per_frame: int
    beam: int
    fast_beam: float
    max_contexts: int
    max_states: int
    fast_beam_backend: str
    blank_penalty: float
    temperature: float
    lm: str | None
    lm_scale: float
    bigram: str | None
    lodr_scale: float
    ngram: str | None
    ngram_scale: float
    ilm_scale: float
    hotwords: str | None
    hotwords_boost: float
    num_threads: int
    by_method: dict[str, dict[str, Any]]

    def of_method(self, method: str) -> DecodeConfig:
        """The settings of one method: these, with what `by_method` says of it."""
        own = self.by_method.get(method, {})
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(self), own))  # type: ignore[return-value]


@dataclass
class TuneConfig:
    average_num: list[int]
    blank_penalty: list[float]
    lm_scale: list[float]
    lodr_scale: list[float]
    ngram_scale: list[float]
    ilm_scale: list[float]


@dataclass
class AblationConfig:
    controls: list[str]
    seeds: list[int]
    num_epochs: int
    jobs: int
    method: str


@dataclass
class Config:
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
    ablation: AblationConfig
