"""The decoding graph LG: a lexicon of words spelt in tokens, composed with an n-gram language model of words.

    python local/prepare_graph.py --data-dir data/tiny [--arpa FILE | --order 3] [--lexicon FILE]

Reads data/<corpus>/lang; writes data/<corpus>/graph/lexicon.txt and LG.npz. Without --arpa the n-gram model is estimated from
the training transcripts and kept as G.arpa. Without --lexicon every word of the n-gram model is spelt by the BPE model, in
its likeliest way. A lexicon has a line `WORD token token ...` per spelling; WORD alone stands for the BPE model's.

LG accepts sequences of tokens; the words recognised are read off these. The weight of its best path is the n-gram model's
log-probability of the sentence but for one thing, usual with such graphs: back-off arcs are taken wherever that makes a path
better, not just where an n-gram is missing. With bigrams made by interpolation the two are the same.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from local.artifacts.arpa import BOS, EOS, estimate, read_sentences, write_arpa
from local.artifacts.decoding_graph import save_graph
from local.common.atomic import atomic_write
from local.common.cli import program
from local.common.errors import UserError
from local.data.tokenizer import SPECIAL, UNK_ID, Tokenizer
from model.search.graph import EPSILON, Graph

import kaldifst
import numpy as np

TOKENS = "lang/tokens.txt"
UNKNOWN = ("<unk>", "<UNK>")
BACKOFF = "#0"  # the back-off arcs' symbol until the graph is determinised
DELTA = 1e-5  # weights that differ by less are the same

Spelling = tuple[str, tuple[int, ...]]  # a word and its token ids


def spell(words: Iterable[str], tokenizer: Tokenizer) -> list[Spelling]:
    """Each word's tokens; a word with characters that the BPE model lacks is left out."""
    words = list(words)
    spelt = zip(words, tokenizer.encode(words), strict=True)
    return [(word, tuple(ids)) for word, ids in spelt if ids and UNK_ID not in ids]


def read_lexicon(path: Path, tokenizer: Tokenizer) -> list[Spelling]:
    """The spellings of a lexicon file, each once. Raises `UserError` naming the line of an unknown token or word."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens) if token not in SPECIAL}
    lexicon: dict[Spelling, None] = {}
    for line in read_sentences(path):
        word, *names = line.split()
        strange = [name for name in names if name not in ids]
        if strange or word in (BOS, EOS, BACKOFF):
            what = f"{strange[0]!r} is no token of {TOKENS}" if strange else f"{word!r} is no word"
            raise UserError(f"{path}: line {line!r}: {what}")
        spellings = [(word, tuple(ids[name] for name in names))] if names else spell([word], tokenizer)
        if not spellings:
            raise UserError(f"{path}: line {line!r}: the BPE model lacks {tokenizer.unknown_characters(word)}")
        lexicon[spellings[0]] = None
    return list(lexicon)


def unpacked(path: Path, folder: Path) -> Path:
    """`path`, or where it is gzipped its content in `folder`. Raises `UserError` where it cannot be read."""
    try:
        if path.suffix != ".gz":
            path.open("rb").close()
            return path
        with gzip.open(path) as packed, (folder / "G.arpa").open("wb") as plain:
            shutil.copyfileobj(packed, plain)
    except (FileNotFoundError, IsADirectoryError, PermissionError, gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None
    return folder / "G.arpa"


def arpa_words(path: Path, name: str) -> list[str]:
    """The words of an ARPA file but <s>, </s> and <unk>. `UserError` with `name` where it has no section of single words."""
    words, inside = [], False
    with path.open(encoding="utf-8", errors="replace") as f:
        for line in f:
            line = line.strip()
            if line.startswith("\\"):
                if inside:
                    break
                inside = line == "\\1-grams:"
            elif inside and line:
                words += line.split()[1:2]
    if not words:
        raise UserError(f"{name}: not an n-gram model in ARPA format")
    return [word for word in words if word not in (BOS, EOS, *UNKNOWN)]


def grammar(arpa: Path, name: str, words: Sequence[str], folder: Path) -> kaldifst.StdVectorFst:
    """G: the n-gram model over the ids of `words`, which are their places from 1; then comes that of `BACKOFF`.

    It has no output labels. N-grams with other words are left out. Works with files in `folder`.

    Raises:
      UserError: kaldilm cannot read the file, for the reason that it gives; calls the file `name`.
    """
    symbols = folder / "words.txt"
    names = ["<eps>", *words, BACKOFF, BOS, EOS]
    symbols.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)), encoding="utf-8")
    # A process of its own: what kaldilm does not like ends it.
    options = [f"--disambig-symbol={BACKOFF}", f"--read-symbol-table={symbols}"]
    command = [sys.executable, "-m", "kaldilm", *options, "--max-arpa-warnings=0", str(arpa), str(folder / "G.fst")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("[E]")] or done.stderr.splitlines()[-1:]
        raise UserError(f"{name}: kaldilm cannot read it: {' '.join(reasons)}")
    fst = kaldifst.StdVectorFst.read(str(folder / "G.fst"))
    return _with_outputs(fst, copied=False)


def _with_outputs(fst: kaldifst.StdVectorFst, copied: bool) -> kaldifst.StdVectorFst:
    """`fst` with output labels copied from its input labels, which makes it an acceptor, or without any."""
    result = kaldifst.StdVectorFst()
    for _ in range(fst.num_states):
        result.add_state()
    result.start = fst.start
    for state in range(fst.num_states):
        result.set_final(state, fst.final(state))
        for arc in kaldifst.ArcIterator(fst, state):
            result.add_arc(state, kaldifst.StdArc(arc.ilabel, arc.ilabel if copied else 0, arc.weight, arc.nextstate))
    return result


def lexicon_fst(lexicon: Sequence[Spelling], word_ids: dict[str, int], vocab_size: int) -> kaldifst.StdVectorFst:
    """L: any sequence of words, token ids to word ids (Mohri, Pereira and Riley, 2008).

    A spelling that another one begins with, or that several words have, ends in one more symbol, to tell them apart: only so
    LG can be determinised. The symbols of such are vocab_size + 1, ...; `BACKOFF`'s passes through, as vocab_size.
    """
    backoff = len(word_ids) + 1
    times = Counter(tokens for _, tokens in lexicon)
    begun = {tokens[:n] for tokens in times for n in range(1, len(tokens))}
    used: Counter[tuple[int, ...]] = Counter()
    lines, states = [f"0 0 {vocab_size} {backoff}"], 1
    for word, tokens in lexicon:
        labels = list(tokens)
        if times[tokens] > 1 or tokens in begun:
            used[tokens] += 1
            labels.append(vocab_size + used[tokens])
        path = [0, *range(states, states + len(labels) - 1), 0]
        states += len(labels) - 1
        for i, label in enumerate(labels):
            lines.append(f"{path[i]} {path[i + 1]} {label} {word_ids[word] if i == 0 else 0}")
    fst = kaldifst.compile("\n".join([*lines, "0"]))
    kaldifst.arcsort(fst, "olabel")
    return fst


def compose(lexicon: kaldifst.StdVectorFst, lm: kaldifst.StdVectorFst, vocab_size: int) -> Graph:
    """LG of L and G, determinised, minimised and its weights moved towards the start, so that a search meets them early.

    After that the symbols that told spellings apart and `BACKOFF` are `EPSILON`; the arcs stay, see `Graph`.

    Raises:
      UserError: no sentence of the n-gram model's can be spelt.
    """
    fst = kaldifst.compose(lexicon, lm)
    kaldifst.determinize_star(fst, delta=DELTA)
    fst = _with_outputs(fst, copied=True)
    kaldifst.minimize(fst, delta=DELTA)
    if fst.num_states < 1:
        raise UserError("no sentence has both a spelling in the lexicon and a probability in the n-gram model")
    # The start becomes state 0, in exchange with it.
    order = list(range(fst.num_states))
    order[0], order[fst.start] = fst.start, 0
    arcs = np.fromiter(
        ((arc.ilabel, order[arc.nextstate], -arc.weight.value) for s in order for arc in kaldifst.ArcIterator(fst, s)),
        dtype=[("label", np.int32), ("next", np.int32), ("weight", np.float32)],
    )
    return Graph(
        offsets=np.cumsum([0, *(fst.num_arcs(s) for s in order)], dtype=np.int64),
        labels=np.where(arcs["label"] < vocab_size, arcs["label"], EPSILON).astype(np.int32),
        next_states=arcs["next"].copy(),
        weights=arcs["weight"].copy(),
        finals=-np.array([fst.final(s).value for s in order], dtype=np.float32),
    )


def prepare(data_dir: Path, arpa: Path | None, order: int, lexicon_file: Path | None) -> str:
    """The program's work; tells what was made. Arguments are the program's."""
    out, tokenizer = data_dir / "graph", Tokenizer.from_file(data_dir / "lang" / "bpe.model")
    lexicon = read_lexicon(lexicon_file, tokenizer) if lexicon_file else []
    source = arpa or data_dir / "lang" / "transcript.txt"
    if arpa is None:
        texts = read_sentences(source)
        arpa = out / "G.arpa"
        write_arpa(estimate((text.split() for text in texts), order, (word for word, _ in lexicon)), arpa)
    with tempfile.TemporaryDirectory() as folder:
        plain = unpacked(arpa, Path(folder))
        words = arpa_words(plain, str(arpa))
        lexicon = lexicon or spell(words, tokenizer)
        ids = {word: i for i, word in enumerate(dict.fromkeys(word for word, _ in lexicon), 1)}
        check_words(source, words, list(ids))
        lm = grammar(plain, str(arpa), list(ids), Path(folder))
    with atomic_write(out / "lexicon.txt") as tmp:
        lines = (f"{word} {' '.join(tokenizer.tokens[i] for i in tokens)}\n" for word, tokens in lexicon)
        tmp.write_text("".join(lines), encoding="utf-8")
    graph = compose(lexicon_fst(lexicon, ids, tokenizer.vocab_size), lm, tokenizer.vocab_size)
    save_graph(graph, tokenizer, out / "LG.npz")
    return f"{out / 'LG.npz'}: {len(graph.finals)} states and {len(graph.labels)} arcs of {len(ids)} words"


def check_words(source: Path, words: Sequence[str], spelt: Sequence[str]) -> None:
    """Tell of words that will never be recognised. Raises `UserError` where these are all of the n-gram model's."""
    known, both = set(words), set(words) & set(spelt)
    if not both:
        raise UserError(f"{source}: none of its {len(words)} words has a spelling, {words[0]!r} for one")
    for missing, where in ((known - both, "spelling"), (set(spelt) - both, f"probability in {source}")):
        if missing:
            print(f"warning: {len(missing)} words have no {where}, {min(missing)!r} for one", file=sys.stderr)


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    lm = parser.add_mutually_exclusive_group()
    lm.add_argument("--arpa", type=Path, help="n-gram model of words, may be gzipped")
    lm.add_argument("--order", type=int, default=3, help="of the n-gram model that is estimated")
    parser.add_argument("--lexicon", type=Path)
    args = parser.parse_args(argv)
    print(prepare(args.data_dir, args.arpa, args.order, args.lexicon))


if __name__ == "__main__":
    main()
