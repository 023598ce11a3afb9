"""Settings chosen on the dev parts: local/tune.py writes them, local/decode.py uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import atomic_write
from local.common.errors import UserError, reason
from local.common.text_files import read_yaml
from local.config import config_from_dict
from local.config.schema import DecodeConfig

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


def keys_of(overrides: Sequence[str]) -> set[str]:
    """Return the keys of "key.sub=value" arguments."""
    return {override.partition("=")[0] for override in overrides}


def save_tuned(path: Path, decode: dict[str, Any], average: dict[str, Any]) -> None:
    """Write the values chosen for sections `decode` (with `by_method`) and `average`."""
    content = {"decode": decode, "average": average}
    with atomic_write(path) as tmp:
        tmp.write_text("# Chosen on the dev parts by local/tune.py\n" + yaml.safe_dump(content), encoding="utf-8")


def with_tuned(options: DecodeConfig, path: Path, overrides: Sequence[str] = ()) -> DecodeConfig:
    """Return `options` with the values of a file of `save_tuned`, except keys that `overrides` ("decode.key=value") name.

    Raises `UserError` if the file is missing or not such a file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; stage 4 (tune) of run.sh makes it if section 'tune' has a list")
    given = keys_of(overrides)
    try:
        chosen = read_yaml(path)["decode"]
        by_method = chosen.pop("by_method", {})
        used = {key: value for key, value in chosen.items() if f"decode.{key}" not in given}
        used["by_method"] = {
            method: {k: v for k, v in own.items() if not {f"decode.{k}", f"decode.by_method.{method}.{k}"} & given}
            for method, own in by_method.items()
        }
        merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(options), used))
    except (UserError, KeyError, TypeError, ValueError, AttributeError, OmegaConfBaseException) as e:
        raise UserError(f"{path}: not by local/tune.py: {reason(e).removeprefix(f'{path}: ')}") from None
    return config_from_dict({"decode": merged}, where=str(path)).decode  # this checks the values
