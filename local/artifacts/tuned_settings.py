"""Settings chosen on the dev parts: local/tune.py writes them, local/decode.py uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from local.common.atomic import write_text
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
    content = yaml.safe_dump({"decode": decode, "average": average})
    write_text(path, "# Chosen on the dev parts by local/tune.py\n" + content)


def with_tuned(options: DecodeConfig, path: Path, overrides: Sequence[str] = ()) -> DecodeConfig:
    """Return `options` with the values of a file of `save_tuned`, except keys that `overrides` ("decode.key=value") name.

    Raises `UserError` if the file is missing or not such a file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; stage 4 (tune) of run.sh makes it if section 'tune' has a list")
    given = keys_of(overrides)
    content = read_yaml(path)
    try:
        chosen = content["decode"]
        by_method = chosen.pop("by_method", {})
        used = {key: value for key, value in chosen.items() if f"decode.{key}" not in given}
        used["by_method"] = {
            method: {k: v for k, v in own.items() if not {f"decode.{k}", f"decode.by_method.{method}.{k}"} & given}
            for method, own in by_method.items()
        }
        merged = OmegaConf.to_container(OmegaConf.merge(OmegaConf.structured(options), used))
    except (KeyError, TypeError, ValueError, AttributeError, OmegaConfBaseException) as e:
        raise UserError(f"{path}: not by local/tune.py: {reason(e)}") from None
    return config_from_dict({"decode": merged}, where=str(path)).decode  # this checks the values
