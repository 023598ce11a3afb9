"""The doctor's checks of the parts of a corpus: whether they can be read, how much was dropped, how large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from local.common.errors import UserError
from local.common.visible import visible
from local.config.schema import Config
from local.corpus.splits import ENOUGH
from local.data.summary import Summary
from local.health.finding import Finding, error, warning
from local.health.prepared import read_prepared

MOST_DROPPED = 0.1  # of a part's utterances, for one reason


def check_manifests(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield the parts whose cuts cannot be read, or that have none; the other checks leave these out."""
    prepared = read_prepared(data_dir, cfg)
    yield from (error(str(e)) for e in prepared.damaged.values())
    for part, utterances in prepared.parts.items():
        if not utterances:
            yield error(
                f"{prepared.manifest(part)}: part '{part}' has no utterance",
                "see dropped.tsv beside it, and run prepare.sh again (--force)",
            )


def check_dropped(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield the reasons for which preparation dropped a large share of a part."""
    summary = Summary(data_dir)
    try:
        for stage in ("parts", "cuts"):
            for part, numbers in summary.content.get(stage, {}).items():
                total = numbers["utterances"] + sum(numbers["dropped"].values())
                for kind, count in numbers["dropped"].items():
                    if count > MOST_DROPPED * total:
                        what = f"preparation dropped {count} of {total} utterances of part '{part}': {visible(kind)}"
                        fix = f"{data_dir}/dropped.tsv lists them; fix them, or change the key that the reason names"
                        yield warning(what, f"{fix}, and run prepare.sh again (--force)")
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{summary.path}: damaged; let stage 1 (manifests) of prepare.sh make it again (--force)") from None


def check_sizes(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield dev and test parts with too few utterances, or with one speaker only, for an error rate that says much."""
    prepared = read_prepared(data_dir, cfg)
    trained = {u.speaker for u in prepared.training()}
    for part in prepared.held_out():
        utterances = prepared.parts[part]
        speakers = {u.speaker for u in utterances}
        if 0 < len(utterances) < ENOUGH:
            what = f"part '{part}' has only {len(utterances)} utterances: its error rates are rough"
            yield warning(
                what, "add utterances to it, or let preparation split it off the training part (split in corpus.yaml)"
            )
        elif len(speakers) == 1 and "" not in speakers and len(trained - {""}) > 1:
            yield warning(f"part '{part}' has only one speaker: its error rates are that speaker's", "add utterances of others")


CHECKS: tuple[Callable[[Path, Config, bool], Iterator[Finding]], ...] = (check_manifests, check_dropped, check_sizes)
