"""Key data.mix: what its folders and shares must be, and the names of its corpora."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import PurePath

from local.config.limits import FileName, PartName, shown

MARK = "@"  # between a part and the name of its corpus, in names of sets and columns; those of the first corpus have neither


def corpus_name(folder: str) -> str:
    """Return the name of the corpus in a folder of data.mix: that of the folder."""
    return PurePath(os.path.normpath(folder)).name


def problem_of_mix(mix: Mapping[str, float]) -> str:
    """Return what is wrong with data.mix; "" if nothing is."""
    if len(mix) < 2:
        return "must name at least two folders of prepared data, such as {data/librispeech: 0.7, data/mine: 0.3}"
    names: dict[str, str] = {}
    for folder in mix:
        name = corpus_name(folder)
        if (why := FileName().problem(folder) or PartName().problem(name)) is not None:
            return f"folder '{shown(folder)}': {why}"
        if MARK in name:
            return f"folder '{shown(folder)}': its name must not have '{MARK}', which stands between a part and its corpus"
        if name in names:
            return f"folders '{shown(names[name])}' and '{shown(folder)}' have the same name; results need different ones"
        names[name] = folder
    total = math.fsum(mix.values())
    if 0 in mix.values():
        return "" if total < 1 else f"its shares add up to {total:g}: nothing is left for the folders with 0"
    return "" if math.isclose(total, 1, abs_tol=1e-6) else f"its shares must add up to 1, not {total:g}"


def shares_of(mix: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Return the share of each folder of the training utterances; they add up to 1.

    Folders with 0 divide what the others leave by `sizes`, their numbers of utterances.
    """
    rest, by_size = 1 - math.fsum(mix.values()), sum(sizes[folder] for folder, share in mix.items() if share == 0)
    return {folder: share or rest * sizes[folder] / by_size for folder, share in mix.items()}
