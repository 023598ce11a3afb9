"""The doctor's checks of texts: characters without tokens, transcripts that repeat, LM text against transcripts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.common.text_files import is_file, iterate_lines
from local.common.visible import visible
from local.config.schema import Config
from local.corpus.dropped import read_dropped
from local.data.text import TextNormaliser
from local.data.token_counts import MADE_BY
from local.data.tokenizer import Tokenizer, lang_dir
from local.health.finding import Finding, error, note, warning
from local.health.prepared import FEW, Utterance, read_prepared, several

LINES = 100_000  # of lm.text that are read without option --all
LONG = 6  # words of a text that two people hardly say alike by chance
MOST_MISSING = 0.2  # of the words of the training transcripts that LM text may lack
MANY = 50  # utterances or texts from which a share says something
CHARACTERS = 20  # named in a finding


def check_characters(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield parts with characters that no token has: they cannot be trained on, nor be recognised."""
    prepared, lang = read_prepared(data_dir, cfg), lang_dir(data_dir, cfg.lang)
    tokenizer = Tokenizer.from_file(lang / "bpe.model")
    dropped = read_dropped(lang / "dropped.tsv", MADE_BY)
    for part, utterances in prepared.parts.items():
        if part in prepared.train:
            rows = [d for d in dropped if d.part == part and d.kind.startswith("characters outside")]
            ids = [d.id for d in rows]
            lost = " ".join(dict.fromkeys(c for d in rows[:MANY] for c in d.kind.partition(": ")[2].split()))
            fix = f"raise lang.character_coverage (now {cfg.lang.character_coverage:g}) or fix the transcripts"
        else:
            known = _Known(tokenizer)
            ids = [u.id for u in utterances if known.lacking(u.text)]
            lost = " ".join(sorted(known.unknown))
            fix = "spell the part as the training transcripts are spelled (lang.normalise, lang.rules)"
        if len(ids) > FEW * len(utterances):
            what = f"{several(ids, part, len(utterances))} have characters without a token in {lang}/bpe.model: "
            yield warning(what + visible(lost[: 2 * CHARACTERS]), fix)


@dataclass
class _Known:
    """Which characters have a token; each is looked up once."""

    tokenizer: Tokenizer
    known: set[str] = field(default_factory=lambda: {" "})
    unknown: set[str] = field(default_factory=set)

    def lacking(self, text: str) -> bool:
        """Return whether the text has a character without a token."""
        characters = set(text)
        if new := characters - self.known - self.unknown:
            lost = set(self.tokenizer.lost_characters("".join(sorted(new))))
            self.unknown |= lost
            self.known |= new - lost
        return not characters <= self.known


def check_repeated_texts(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield a part in which most utterances have the same transcript."""
    for part, utterances in read_prepared(data_dir, cfg).parts.items():
        text, count = Counter(u.text for u in utterances).most_common(1)[0] if len(utterances) >= MANY else ("", 0)
        if 2 * count > len(utterances):
            what = f"{count} of {len(utterances)} utterances of part '{part}' have the same transcript, '{visible(text[:80])}'"
            yield warning(what, "check the column or file from which transcripts are read; a model learns to say this text")


def check_lm_text(data_dir: Path, cfg: Config, every: bool) -> Iterator[Finding]:
    """Yield LM text that is spelled unlike the transcripts, or that holds the transcripts of dev or test parts."""
    path = Path(cfg.lm.text or "")
    if not cfg.lm.text or not is_file(path):  # check_files of local.health.configuration says that it is missing
        return
    prepared, lang = read_prepared(data_dir, cfg), lang_dir(data_dir, cfg.lang)
    transcripts = [u.text for u in prepared.training()]
    wanted = {part: long_texts(prepared.parts[part], set(transcripts)) for part in prepared.held_out()}
    found = read_lm_text(path, cfg, every, _Known(Tokenizer.from_file(lang / "bpe.model")), set().union(*wanted.values()))
    if not found.lines:
        yield error(f"{path} (key 'lm.text') has no text", "name a file with one sentence per line, or set lm.text=null")
        return
    if not found.whole:
        yield note(f"lm.text: the first {found.lines} lines")
    if len(found.lacking) > FEW * found.lines:
        what = (
            f"{len(found.lacking)} of {found.lines} lines of {path} (key 'lm.text') have characters without a token, the first "
        )
        what += f"line {found.lacking[0]}: {visible(' '.join(sorted(found.known.unknown))[: 2 * CHARACTERS])}"
        yield warning(what, "spell it as the transcripts are spelled, or take these characters out by lang.rules")
    yield from missing_words(path, transcripts, found.words)
    for part, texts in wanted.items():
        leaked = [u.id for u in prepared.parts[part] if u.text in texts and u.text in found.seen]
        if len(leaked) > FEW * len(prepared.parts[part]):
            which = several(leaked, part, len(prepared.parts[part]))
            what = f"the transcripts of {which} are whole lines of {path} (key 'lm.text')"
            yield warning(what, "take these lines out; else the language model's perplexity and the WER are too good")


@dataclass
class LmText:
    """What is found in LM text: lines with text, the numbers of those with unknown characters, words, some transcripts."""

    known: _Known
    lines: int = 0
    whole: bool = True  # whether it was read to its end
    lacking: list[int] = field(default_factory=list)
    words: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)


def read_lm_text(path: Path, cfg: Config, every: bool, known: _Known, transcripts: set[str]) -> LmText:
    """Read the first `LINES` lines of LM text, or all with `every`. Raises `UserError` naming the line if it is not text."""
    found, normalise = LmText(known), TextNormaliser(cfg.lang)
    lines = enumerate(map(normalise, iterate_lines(path)), 1)
    for number, line in lines if every else itertools.islice(lines, LINES):
        if not line:
            continue
        found.lines += 1
        found.words.update(line.split())
        if known.lacking(line):
            found.lacking.append(number)
        if line in transcripts:
            found.seen.add(line)
    found.whole = next(lines, None) is None
    return found


def long_texts(utterances: Sequence[Utterance], trained: set[str]) -> set[str]:
    """Return the texts of at least `LONG` words that are not training transcripts: of a small grammar those are many."""
    return {u.text for u in utterances if u.text.count(" ") >= LONG - 1} - trained


def missing_words(path: Path, transcripts: Sequence[str], words: set[str]) -> Iterator[Finding]:
    """Yield a finding if LM text lacks many words of the transcripts. Texts without spaces between words are not compared."""
    spoken = Counter(word for text in transcripts for word in text.split())
    total = sum(spoken.values())
    if total < 2 * len(transcripts) or total < MANY:
        return
    missing = Counter({word: count for word, count in spoken.items() if word not in words})
    if sum(missing.values()) <= MOST_MISSING * total:
        return
    folded = {word.casefold() for word in words}
    other_case = sum(count for word, count in missing.items() if word.casefold() in folded)
    fix = "take a text of the same language and spelling"
    if 2 * other_case > sum(missing.values()):
        fix = "they are there in other case: set lang.normalise=upper or lower, and prepare the data again"
    share = 100 * sum(missing.values()) / total
    names = ", ".join(visible(word) for word, _ in missing.most_common(5))
    yield warning(f"{path} (key 'lm.text') lacks {share:.0f} % of the words of the training transcripts, such as {names}", fix)


CHECKS: tuple[Callable[[Path, Config, bool], Iterator[Finding]], ...] = (check_characters, check_repeated_texts, check_lm_text)
