"""The feature floor of a checkpoint that has none, from the training data if they are there."""

from __future__ import annotations

import sys
from pathlib import Path

from local.common.errors import UserError, one_line
from local.config.schema import Config
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer
from model.transducer import Transducer


def ensure_floor(model: Transducer, cfg: Config, tokenizer: Tokenizer, checkpoint: Path, data_dir: Path | None) -> None:
    """Give the encoder a feature floor if key decode.feature_floor is true and `checkpoint`, which it is of, has none.

    It is computed from the training parts in `data_dir`. A line on stderr says that it was, or why there is none: a model
    works without it, but answers digital silence with words.
    """
    if not cfg.decode.feature_floor or model.encoder.feature_floor is not None:
        return
    why = "--data-dir names no prepared data"
    if data_dir is not None:
        try:
            floor = AsrDataModule(cfg, data_dir, tokenizer).feature_floor()
            if floor is not None:
                model.encoder.feature_floor = floor.to(model.encoder.encoder_embed.out.weight.device)
                print(f"{checkpoint} has no feature floor: computed from the training parts in {data_dir}", file=sys.stderr)
                return
            why = f"no training utterance in {data_dir} could be loaded"
        except UserError as e:
            why = str(e)
    hint = "to compute the floor, give --data-dir with the training parts; to decode without it, set decode.feature_floor=false"
    print(one_line(f"{checkpoint} has no feature floor, so digital silence may give words: {why}; {hint}"), file=sys.stderr)
