"""The decoding graph LG: a lexicon of words spelt in tokens, composed with an n-gram language model of words.

    .venv/bin/python -m local.prepare_graph --conf egs/tiny/conf/tiny.yaml --data-dir data/tiny
        [--arpa FILE | --order 3] [--lexicon FILE] [lang.vocab_size=80]

Reads LANG, which is data/<corpus>/lang_bpe_<lang.vocab_size>, lang_char or lang_given. Writes LANG/graph/lexicon.txt
and LG.npz. Without --arpa the n-gram model is estimated from lm.text (default: the training transcripts) and written to G.arpa.
Without --lexicon every word of the n-gram model has one spelling, the BPE model's best for the word's normal form (section
lang). A lexicon has one line `WORD token token ...` per spelling; a line with WORD alone means the BPE model's spelling. It is
the spelling of the n-gram model's word WORD, or else of all its words that have the same normal form.

LG accepts sequences of tokens, from which the words follow. The weight of its best path is the log-probability of the
sentence by the n-gram model, with an exception that such graphs usually have: back-off arcs are taken if they make a path
better, not only if an n-gram is missing. With interpolated bigrams the two are the same.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from local.artifacts.arpa import BOS, EOS, estimate, read_model, read_sentences, write_arpa
from local.artifacts.decoding_graph import save_graph
from local.common.atomic import scratch_folder, write_text
from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import writes
from local.common.text_files import iterate_lines
from local.config import load_config
from local.data.text import TextNormaliser
from local.data.tokenizer import SPECIAL, UNK_ID, Tokenizer, lang_dir
from model.search.graph import EPSILON, Graph
from model.search.scorers import NGrams, read_ngrams

import kaldifst
import numpy as np

UNKNOWN = ("<unk>", "<UNK>")
BACKOFF = "#0"  # symbol of back-off arcs until the graph is determinised
DELTA = 1e-5  # weights that differ by less count as equal
LONGEST_SPELLING = 500  # tokens; a longer one is not a word

Spelling = tuple[str, tuple[int, ...]]  # a word and its token ids
Clean = Callable[[str], str]  # gives a word its normal form


def spell(words: Sequence[str], tokenizer: Tokenizer, clean: Clean) -> list[Spelling]:
    """Return each word with the tokens of its normal form, without those that are too long or have unknown characters."""
    spelt = zip(words, tokenizer.encode([clean(word) for word in words]), strict=True)
    return [(word, tuple(ids)) for word, ids in spelt if ids and min(ids) > UNK_ID and len(ids) <= LONGEST_SPELLING]


def read_lexicon(path: Path, tokenizer: Tokenizer, clean: Clean) -> list[Spelling]:
    """Return the spellings of a lexicon file, each once. Raises `UserError` naming the line of an unknown token or word."""
    ids = {token: i for i, token in enumerate(tokenizer.tokens) if token not in SPECIAL}
    lexicon: dict[Spelling, None] = {}
    for number, line in enumerate(iterate_lines(path), 1):
        if not line.strip():
            continue
        word, *names = line.split()
        where, strange = f"{path}:{number}: {line[:80]!r}", [name for name in names if name not in ids]
        if strange or word in (BOS, EOS):
            raise UserError(
                f"{where}: " + (f"{strange[0][:80]!r} is not in tokens.txt" if strange else f"{word!r} cannot be a word")
            )
        spellings = [(word, tuple(ids[name] for name in names))] if names else spell([word], tokenizer, clean)
        if not spellings or len(spellings[0][1]) > LONGEST_SPELLING:
            lost = [] if spellings else tokenizer.lost_characters(clean(word))[:10]
            raise UserError(f"{where}: " + (f"the BPE model lacks {lost}" if lost else f"not 1 to {LONGEST_SPELLING} tokens"))
        lexicon[spellings[0]] = None
    if not lexicon:
        raise UserError(f"{path}: no word in it")
    return list(lexicon)


def of_words(lexicon: Sequence[Spelling], words: Sequence[str], clean: Clean) -> list[Spelling]:
    """Return the spellings for `words`, those of the n-gram model: the word as the lexicon has it, else in its normal form."""
    known, forms = set(words), dict[str, list[str]]()
    for word in words:
        forms.setdefault(clean(word), []).append(word)
    found = {(w, ids): None for word, ids in lexicon for w in ([word] if word in known else forms.get(clean(word), [word]))}
    return list(found)


def grammar(numbers: dict[str, int], ngrams: NGrams, ids: dict[str, int], name: Path, folder: Path) -> kaldifst.StdVectorFst:
    """Return G, the n-gram model of `read_ngrams` over the word ids `ids`, which count from 1; the next id is `BACKOFF`'s.

    G has no output labels and no n-grams with other words. Raises `UserError` with kaldilm's reason; it calls the file `name`.
    """
    # Names of our own, as a word of the model may be kaldilm's "<eps>" or "#0". Other words are not in its table of symbols.
    names = {number: f"w{ids[word]}" if word in ids else "other" for word, number in numbers.items()}
    names |= {numbers[mark]: mark for mark in (BOS, EOS)}
    symbols, arpa = folder / "words.txt", folder / "G.arpa"
    table = ["<eps>", *(f"w{i}" for i in ids.values()), BACKOFF, BOS, EOS]
    write_text(symbols, "".join(f"{symbol} {i}\n" for i, symbol in enumerate(table)))
    with arpa.open("w", encoding="utf-8") as f:
        counts = Counter(map(len, ngrams))
        f.write("\\data\\\n" + "".join(f"ngram {n}={counts[n]}\n" for n in sorted(counts)))
        order = 0
        for ngram, (log_prob, weight) in ngrams.items():
            if len(ngram) > order:
                order = len(ngram)
                f.write(f"\n\\{order}-grams:\n")
            factor = f"\t{weight!r}" if order < len(counts) else ""
            f.write(f"{log_prob!r}\t{' '.join(names[number] for number in ngram)}{factor}\n")
        f.write("\n\\end\\\n")
    # In another process, since kaldilm ends its process on an error.
    options = [f"--disambig-symbol={BACKOFF}", f"--read-symbol-table={symbols}"]
    command = [sys.executable, "-m", "kaldilm", *options, "--max-arpa-warnings=0", str(arpa), str(folder / "G.fst")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="backslashreplace")
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


def prepare(
    lang: Path, arpa: Path | None, order: int, lexicon_file: Path | None, clean: Clean, text: Path | None = None
) -> str:
    """Write the graph of the tokens in `lang` and return a line about it; the other arguments are the program's.

    clean: gives words the normal form of the transcripts, which have it already. text: lm.text (None: the transcripts).
    """
    out, tokenizer = lang / "graph", Tokenizer.from_file(lang / "bpe.model")
    lexicon = read_lexicon(lexicon_file, tokenizer, clean) if lexicon_file else []
    source = arpa or text or lang / "transcript.txt"
    if arpa is None:
        sentences = [line.split() for line in read_sentences(source, clean if text else str.strip, words=True)]
        forms = (clean(word) for word, _ in lexicon)
        arpa = out / "G.arpa"
        write_arpa(estimate(sentences, order, (form for form in forms if len(form.split()) == 1)), arpa)
    numbers, ngrams = read_model(arpa, read_ngrams)
    words = [word for word in numbers if word not in (BOS, EOS, *UNKNOWN)]
    lexicon = of_words(lexicon, words, clean) if lexicon else spell(words, tokenizer, clean)
    ids = {word: i for i, word in enumerate(dict.fromkeys(word for word, _ in lexicon), 1)}
    check_words(source, words, list(ids))
    with scratch_folder(out / "G.fst") as folder:
        lm = grammar(numbers, ngrams, ids, arpa, folder)
    lines = (f"{word} {' '.join(tokenizer.tokens[i] for i in tokens)}\n" for word, tokens in lexicon)
    write_text(out / "lexicon.txt", "".join(lines))
    graph = compose(lexicon_fst(lexicon, ids, tokenizer.vocab_size), lm, tokenizer.vocab_size)
    save_graph(graph, tokenizer, out / "LG.npz")
    return f"{out / 'LG.npz'}: {len(graph.finals)} states and {len(graph.labels)} arcs of {len(ids)} words"


def check_words(source: Path, words: Sequence[str], spelt: Sequence[str]) -> None:
    """Warn of words that can never be recognised. Raises `UserError` if these are all words of the n-gram model."""
    known, both = set(words), set(words) & set(spelt)
    if not words:
        raise UserError(f"{source}: the n-gram model has no word")
    if not both:
        raise UserError(f"{source}: none of its {len(words)} words has a spelling, such as {words[0][:80]!r}")
    for missing, where in ((known - both, "spelling"), (set(spelt) - both, f"probability in {source}")):
        if missing:
            print(f"warning: {len(missing)} words have no {where}, such as {min(missing)[:80]!r}", file=sys.stderr)


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Make the graph LG."""
    parser = make_parser(__doc__, data_dir=True)
    lm = parser.add_mutually_exclusive_group()
    lm.add_argument("--arpa", type=Path, help="n-gram model of words, may be gzipped")
    lm.add_argument("--order", type=int, default=3, help="of the estimated n-gram model (%(default)s)")
    parser.add_argument("--lexicon", type=Path, help="spellings of words in tokens")
    args = parser.parse_args(argv)
    writes(args.data_dir, wait=True)
    cfg = load_config(args.conf, args.overrides)
    lang, clean = lang_dir(args.data_dir, cfg.lang), TextNormaliser(cfg.lang)
    print(prepare(lang, args.arpa, args.order, args.lexicon, clean, Path(cfg.lm.text) if cfg.lm.text else None))


if __name__ == "__main__":
    main()
