"""What the prepared data are: data/<corpus>/README.md, from summary.json, to which each stage adds what it knows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from local.common.atomic import write_text
from local.common.errors import UserError
from local.common.text_files import read_yaml
from local.common.visible import markdown, visible
from local.corpus.audio_files import SILENT
from local.corpus.corpus_yaml import Corpus
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair
from local.corpus.screening import LEVELS

NAME = "summary.json"
MADE_BY = "stage 1 (manifests) of prepare.sh"
KEYS = {"char": "lang.type=char", "given": "lang.bpe_model"}  # by the name of the tokens; else it is lang.vocab_size
Numbers = dict[str, Any]


class Summary:
    """The numbers of each part: by stage 1 under `parts`, by stage 2 under `cuts`, by stage 3 under `tokens`."""

    def __init__(self, data_dir: Path, content: Numbers | None = None) -> None:
        """Read data_dir/summary.json, if `content` is not given; no file is an empty summary."""
        self.path = data_dir / NAME
        if content is None:
            content = read_yaml(self.path, MADE_BY, json.loads) if self.path.is_file() else {}
        self.content: Numbers = content if isinstance(content, dict) else {}

    @classmethod
    def start(
        cls,
        data_dir: Path,
        corpus: Corpus,
        kept: Mapping[str, Sequence[Pair]],
        given: Collection[str],
        dropped: Iterable[Dropped],
        unusual: Mapping[str, str] | None = None,
    ) -> Summary:
        """Return the summary of stage 1. given: the parts that were read; others were split off the first training part.

        unusual: for each part, a line about characters that are not letters.
        """
        lost = by_kind(dropped)
        moved = sum(len(pairs) for part, pairs in kept.items() if part not in given)
        parts = {}
        for part, pairs in kept.items():
            recordings = {recording.id: recording for recording, _ in pairs}.values()
            levels = [levels for _, s in pairs if (levels := (s.custom or {}).get(LEVELS))]
            gone = moved if part in corpus.train[:1] else 0 if part in given else -len(pairs)
            parts[part] = {
                "read": len(pairs) + gone + sum(lost.get(part, {}).values()),
                "dropped": lost.get(part, {}),
                "split off": gone,
                "speakers": len({s.speaker for _, s in pairs if s.speaker}),
                "sampling rates": Counter(str(r.sampling_rate) for r in recordings),
                "channels": Counter(str(r.num_channels) for r in recordings),
                "text": (unusual or {}).get(part, ""),
                **lengths([s.duration for _, s in pairs]),
                "silent": sum(max(found) <= SILENT for found in levels),
            }
        return cls(data_dir, {"corpus": corpus.name, "parts": parts, **_of_later_stages(data_dir, parts)})

    def add_cuts(self, part: str, seconds: Sequence[float], silent: int, dropped: Iterable[Dropped]) -> None:
        """Add what stage 2 knows: the lengths of the cuts, how many are nearly silent, and what it dropped."""
        numbers = {"dropped": by_kind(dropped).get(part, {}), **lengths(seconds), "silent": silent}
        self.content.setdefault("cuts", {})[part] = numbers

    def add_tokens(self, tokens: str, part: str, usable: Iterable[tuple[float, int]], dropped: Iterable[Dropped]) -> None:
        """Add what stage 3 knows with these tokens: seconds and number of tokens of each usable cut; what it dropped.

        tokens: their name, `LangConfig.tokens`.
        """
        pairs = list(usable)
        seconds, count = sum(s for s, _ in pairs), sum(n for _, n in pairs)
        rate = round(count / seconds, 3) if seconds else 0.0
        made = {"dropped": by_kind(dropped).get(part, {}), "per second": rate, **lengths([s for s, _ in pairs])}
        self.content.setdefault("tokens", {}).setdefault(tokens, {})[part] = made

    def write(self, tokens: str = "") -> str:
        """Write summary.json and README.md; return the table, with what stage 3 dropped with these tokens.

        Raises `UserError` if summary.json is damaged.
        """
        try:
            shown = self.table(tokens)
            notes = [
                f"- {markdown(part)}: {visible(n['text'])}"
                for part, n in self.content.get("parts", {}).items()
                if n.get("text")
            ]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise UserError(f"{self.path}: damaged; let {MADE_BY} make it again (--force)") from None
        text = shown + "".join(f"\n{note}" for note in notes) + "\n" * bool(notes)
        title = f"# {markdown(str(self.content.get('corpus', self.path.parent.name)))}: the prepared data"
        head = f"{title}\n\nWritten by prepare.sh. dropped.tsv lists what was left out, with the reasons.\n\n"
        write_text(self.path, json.dumps(self.content, indent=1, ensure_ascii=False) + "\n")
        write_text(self.path.with_name("README.md"), head + text)
        return text

    def table(self, tokens: str = "") -> str:
        """Return a Markdown table with a column for each part."""
        first, second = self.content.get("parts", {}), self.content.get("cuts", {})
        third = self.content.get("tokens", {}).get(tokens, {})
        names = list(dict.fromkeys([*first, *second]))
        last = {part: {**first.get(part, {}), **second.get(part, {}), **third.get(part, {})} for part in names}
        stages = (first, second, third)
        rows: list[tuple[str, list[Any]]] = [("utterances read", [first.get(p, {}).get("read", "") for p in names])]
        for kind in dict.fromkeys(k for stage in stages for p in names for k in stage.get(p, {}).get("dropped", {})):
            counts = [sum(stage.get(p, {}).get("dropped", {}).get(kind, 0) for stage in stages) for p in names]
            rows.append((f"dropped: {markdown(kind)}", counts))
        moved = [first.get(p, {}).get("split off", 0) for p in names]
        if any(moved):
            rows.append(("moved to other parts (-: from train)", moved))
        more = [
            len_of(second, p) + sum(second[p]["dropped"].values()) - len_of(first, p) if p in first and p in second else 0
            for p in names
        ]
        if any(more):
            rows.append(("more, as data.channel=both", more))
        rows.append(("**kept**", [f"**{last[p].get('utterances', '')}**" for p in names]))
        rows.append(("hours", [f"{last[p].get('hours', 0):.2f}" for p in names]))
        rows.append(
            ("seconds, median and longest", [f"{last[p].get('median', 0):.1f}, {last[p].get('longest', 0):.1f}" for p in names])
        )
        rows.append(("speakers", [last[p].get("speakers") or "unknown" for p in names]))
        for key, unit in (("sampling rates", " Hz"), ("channels", "")):
            rows.append((key, [markdown(shares(last[p].get(key, {}), unit)) for p in names]))
        if any(last[p].get("silent") for p in names):
            rows.append((f"nearly silent (below {SILENT:g} dB of full scale)", [last[p].get("silent", "") for p in names]))
        for size, found in self.content.get("tokens", {}).items():
            rows.append(
                (
                    f"tokens per second ({KEYS.get(size, f'lang.vocab_size={markdown(size)}')})",
                    [found.get(p, {}).get("per second", "") for p in names],
                )
            )
        lines = ["| |" + "".join(f" {markdown(p)} |" for p in names), "|---|" + "--:|" * len(names)]
        return "\n".join(lines + [f"| {label} |" + "".join(f" {v} |" for v in values) for label, values in rows]) + "\n"


def lengths(seconds: Sequence[float]) -> Numbers:
    """Return number, hours, median and longest of utterances of these lengths."""
    hours, longest = round(sum(seconds) / 3600, 4), round(max(seconds, default=0.0), 2)
    return {"utterances": len(seconds), "hours": hours, "median": round(median(seconds or [0.0]), 2), "longest": longest}


def len_of(stage: Mapping[str, Numbers], part: str) -> int:
    """Return the number of utterances that a stage kept."""
    return int(stage[part]["utterances"])


def _of_later_stages(data_dir: Path, parts: Numbers) -> Numbers:
    """Return what stages 2 and 3 wrote, if the parts are as before: then they do not run again."""
    try:
        before = Summary(data_dir).content
    except UserError:  # damaged
        return {}
    same = before.get("parts") == json.loads(json.dumps(parts))
    return {name: before[name] for name in ("cuts", "tokens") if same and name in before}


def by_kind(dropped: Iterable[Dropped]) -> dict[str, dict[str, int]]:
    """Return the number of dropped utterances of each part, by kind."""
    counts: dict[str, dict[str, int]] = {}
    for d in dropped:
        kinds = counts.setdefault(d.part, {})
        kinds[d.kind] = kinds.get(d.kind, 0) + 1
    return counts


def shares(counts: Mapping[str, int], unit: str) -> str:
    """Return "16000 Hz", or "16000 Hz: 300, 8000 Hz: 20" for several."""
    if len(counts) == 1:
        return f"{next(iter(counts))}{unit}"
    return ", ".join(f"{name}{unit}: {n}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
