"""Whether a model can spell what it is to recognise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from local.common.errors import UserError
from local.common.scripts import parts
from local.common.text_files import read_bytes
from local.data.tokenizer import Tokenizer

MOST_UNKNOWN = 0.2  # share of the words that may have characters without a token
CHARACTERS_SHOWN = 20


def check_known(texts: Sequence[str], tokenizer: Tokenizer, checkpoint: Path, data_dir: Path) -> None:
    """Print a line if some words of the references `texts` have characters that the model cannot write.

    Chinese and Japanese characters count as words. Raises `UserError` naming the characters without a token, the checkpoint
    and the data if these words are more than `MOST_UNKNOWN` of all.
    """
    words = Counter(part for text in texts for word in text.split() for part in parts(word))
    lacking = set(tokenizer.lost_characters("".join(words), in_bytes=True))
    unknown = {word: [c for c in word if c in lacking] for word in words}
    bad = sum(words[word] for word, lost in unknown.items() if lost)
    if not bad:
        return
    most = Counter[str]()
    for word, lost in unknown.items():
        most.update(dict.fromkeys(lost, words[word]))
    shown = " ".join(c for c, _ in most.most_common(CHARACTERS_SHOWN)) + (" ..." if len(most) > CHARACTERS_SHOWN else "")
    what = f"{bad} of {words.total()} words of the references have characters that the model has no token for: {shown}"
    if bad > MOST_UNKNOWN * words.total():
        hint = "use a model of this language, or transcripts spelled like its training (keys of section lang: case, characters)"
        raise UserError(f"{checkpoint} does not fit the data in {data_dir}: {what}; {hint}")
    print(f"{data_dir}: {what}; these words count as errors")


def compare_tokens(tokenizer: Tokenizer, checkpoint: Path, data_dir: Path) -> None:
    """Print a line if the data have tokens of their own and none are those of the checkpoint."""
    models = sorted(data_dir.glob("lang_*/bpe.model"))
    if models and all(read_bytes(path) != tokenizer.model for path in models):
        names = ", ".join(path.parent.name for path in models)
        print(f"{checkpoint} has other tokens than {data_dir} ({names}): its model was trained on other data")
