"""The decoding graph LG: a lexicon of words spelt in tokens, composed with an n-gram language model of words.

    .venv/bin/python -m local.prepare_graph --conf egs/tiny/conf/tiny.yaml --data-dir data/tiny
        [--arpa FILE | --order 3] [--lexicon FILE] [lang.vocab_size=80]

Reads LANG, which is data/<corpus>/lang_bpe_<lang.vocab_size>. Writes LANG/graph/lexicon.txt and LG.npz. Without --arpa the
n-gram model is estimated from the training transcripts and written to G.arpa. Without --lexicon every word of the n-gram
model has one spelling, the BPE model's best. A lexicon has one line `WORD token token ...` per spelling; a line with WORD
alone means the BPE model's spelling.

LG accepts sequences of tokens, from which the words follow. The weight of its best path is the log-probability of the
sentence by the n-gram model, with an exception that such graphs usually have: back-off arcs are taken if they make a path
better, not only if an n-gram is missing. With interpolated bigrams the two are the same.
"""

from __future__ import annotations

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
from local.common.atomic import write_text
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.config import load_config
from local.data.tokenizer import SPECIAL, UNK_ID, Tokenizer, lang_dir
from model.search.graph import EPSILON, Graph

import kaldifst
import numpy as np

UNKNOWN = ("<unk>", "<UNK>")
BACKOFF = "#0"  # symbol of back-off arcs until the graph is determinised
DELTA = 1e-5  # weights that differ by less count as equal

Spelling = tuple[str, tuple[int, ...]]  # a word and its token ids


def spell(words: Iterable[str], tokenizer: Tokenizer) -> list[Spelling]:
    """Return each word's tokens; words with characters that the BPE model lacks are left out."""
    words = list(words)
    spelt = zip(words, tokenizer.encode(words), strict=True)
    return [(word, tuple(ids)) for word, ids in spelt if ids and UNK_ID not in ids]


def read_lexicon(path: Path, tokenizer: Tokenizer) -> list[Spelling]:
    """Return the spellings of a lexicon file, each once. Raises `UserError` naming the line of an unknown token or word."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens) if token not in SPECIAL}
    lexicon: dict[Spelling, None] = {}
    for line in read_sentences(path):
        word, *names = line.split()
        strange = [name for name in names if name not in ids]
        if strange or word in (BOS, EOS, BACKOFF):
            what = f"{strange[0]!r} is not in tokens.txt" if strange else f"{word!r} cannot be a word"
            raise UserError(f"{path}: line {line!r}: {what}")
        spellings = [(word, tuple(ids[name] for name in names))] if names else spell([word], tokenizer)
        if not spellings:
            raise UserError(f"{path}: line {line!r}: the BPE model lacks {tokenizer.unknown_characters(word)}")
        lexicon[spellings[0]] = None
    return list(lexicon)


def unpack(path: Path, folder: Path) -> Path:
    """Return `path`, or if it is gzipped a file in `folder` with its content. Raises `UserError` if it cannot be read."""
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
    """Return the words of an ARPA file except <s>, </s> and <unk>. Raises `UserError` with `name` if it has no unigrams."""
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
    """Return G, the n-gram model over the ids of `words`, which count from 1; the next id is that of `BACKOFF`.

    G has no output labels and no n-grams with other words. Raises `UserError` with kaldilm's reason; it calls the file `name`.
    """
    symbols = folder / "words.txt"
    names = ["<eps>", *words, BACKOFF, BOS, EOS]
    symbols.write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)), encoding="utf-8")
    # In another process, since kaldilm ends its process on an error.
    options = [f"--disambig-symbol={BACKOFF}", f"--read-symbol-table={symbols}"]
    command = [sys.executable, "-m", "kaldilm", *options, "--max-arpa-warnings=0", str(arpa), str(folder / "G.fst")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("[E]")] or done.stderr.splitlines()[-1:]
        raise UserError(f"{name}: kaldilm cannot read it: {' '.join(reasons)}")
    fst = kaldifst.StdVectorFst.read(str(folder / "G.fst"))
    return _with_outputs(fst, copied=False)


def _with_outputs(fst: kaldifst.StdVectorFst, copied: bool) -> kaldifst.StdVectorFst:
    """Return `fst` with output labels copied from its input labels, which makes it an acceptor, or without them."""
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
    """Return L, which maps token ids to word ids of any sequence of words (Mohri, Pereira and Riley, 2008).

    A spelling that is the beginning of another one, or that several words have, ends in one of the extra symbols
    vocab_size + 1, ...: without them LG could not be determinised. `BACKOFF` passes through as symbol vocab_size.
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
    """Return LG, determinised, minimised, with weights pushed to the start. Raises `UserError` if no sentence can be spelt.

    The extra symbols of spellings and `BACKOFF` become `EPSILON`; their arcs stay, see `Graph`.
    """
    fst = kaldifst.compose(lexicon, lm)
    kaldifst.determinize_star(fst, delta=DELTA)
    fst = _with_outputs(fst, copied=True)
    kaldifst.minimize(fst, delta=DELTA)
    if fst.num_states < 1:
        raise UserError("no sentence has both a spelling in the lexicon and a probability in the n-gram model")
    # Swap the start and state 0.
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


def prepare(lang: Path, arpa: Path | None, order: int, lexicon_file: Path | None) -> str:
    """Write the graph of the tokens in `lang` and return a line about it; the other arguments are the program's."""
    out, tokenizer = lang / "graph", Tokenizer.from_file(lang / "bpe.model")
    lexicon = read_lexicon(lexicon_file, tokenizer) if lexicon_file else []
    source = arpa or lang / "transcript.txt"
    if arpa is None:
        texts = read_sentences(source)
        arpa = out / "G.arpa"
        write_arpa(estimate((text.split() for text in texts), order, (word for word, _ in lexicon)), arpa)
    with tempfile.TemporaryDirectory() as folder:
        plain = unpack(arpa, Path(folder))
        words = arpa_words(plain, str(arpa))
        lexicon = lexicon or spell(words, tokenizer)
        ids = {word: i for i, word in enumerate(dict.fromkeys(word for word, _ in lexicon), 1)}
        check_words(source, words, list(ids))
        lm = grammar(plain, str(arpa), list(ids), Path(folder))
    lines = (f"{word} {' '.join(tokenizer.tokens[i] for i in tokens)}\n" for word, tokens in lexicon)
    write_text(out / "lexicon.txt", "".join(lines))
    graph = compose(lexicon_fst(lexicon, ids, tokenizer.vocab_size), lm, tokenizer.vocab_size)
    save_graph(graph, tokenizer, out / "LG.npz")
    return f"{out / 'LG.npz'}: {len(graph.finals)} states and {len(graph.labels)} arcs of {len(ids)} words"


def check_words(source: Path, words: Sequence[str], spelt: Sequence[str]) -> None:
    """Warn of words that can never be recognised. Raises `UserError` if these are all words of the n-gram model."""
    known, both = set(words), set(words) & set(spelt)
    if not both:
        raise UserError(f"{source}: none of its {len(words)} words has a spelling, such as {words[0]!r}")
    for missing, where in ((known - both, "spelling"), (set(spelt) - both, f"probability in {source}")):
        if missing:
            print(f"warning: {len(missing)} words have no {where}, such as {min(missing)!r}", file=sys.stderr)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Make the graph LG."""
    parser = make_parser(__doc__, data_dir=True)
    lm = parser.add_mutually_exclusive_group()
    lm.add_argument("--arpa", type=Path, help="n-gram model of words, may be gzipped")
    lm.add_argument("--order", type=int, default=3, help="of the estimated n-gram model (%(default)s)")
    parser.add_argument("--lexicon", type=Path, help="spellings of words in tokens")
    args = parser.parse_args(argv)
    lang = lang_dir(args.data_dir, load_config(args.conf, args.overrides).lang)
    print(prepare(lang, args.arpa, args.order, args.lexicon))


if __name__ == "__main__":
    main()
