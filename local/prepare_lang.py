"""Stage 3 of prepare.sh: the tokens, from the transcripts of the training parts, and the token count of each cut.

Reads data/<corpus>/manifests and cuts. Writes data/<corpus>/lang_bpe_<lang.vocab_size>/, lang_char/ if
lang.type=char, or lang_given/ if lang.bpe_model names the tokens:
  transcript.txt        the training transcripts, one per line
  bpe.model, tokens.txt
  num_tokens/<part>.tsv the token count of each cut, -1 if these tokens cannot be used for it
  dropped.tsv           those cuts with the reasons: training utterances whose tokens do not give their text back, or
                        with more tokens than frames after subsampling; dev and test utterances are all kept
If the data are the first folder of data.mix and data.mix_tokens is all, the transcripts of the other folders' training parts
follow. Each kind and number of tokens has its own folder, so that experiments with different ones can share cuts and features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from local.artifacts.checkpoint import tokenizer_in
from local.common.atomic import atomic_write, write_text
from local.common.cli import make_parser, program
from local.common.errors import UserError, first_of
from local.common.locks import reads, writes
from local.config import load_config
from local.config.schema import LangConfig
from local.corpus.corpus_yaml import load_corpus, needs_train
from local.corpus.dropped import Dropped, report_dropped, write_dropped
from local.corpus.manifest_lines import read_manifest
from local.data.durations import SPEEDS, tokens_fit
from local.data.prepared_corpus import of_key, other_folders
from local.data.summary import Summary
from local.data.token_counts import TOO_MANY, UNUSABLE, counts_file, why_unusable, write_token_counts
from local.data.tokenizer import Tokenizer, lang_dir, train_tokenizer
from local.data.transcripts import read_texts

from lhotse.cut import Cut


def write_lang(tokenizer: Tokenizer, texts: Sequence[str], folder: Path) -> None:
    """Write transcript.txt (one text per line), tokens.txt (one `<token> <id>` per line) and bpe.model."""
    write_text(folder / "transcript.txt", "".join(t + "\n" for t in texts))
    write_text(folder / "tokens.txt", "".join(f"{t} {i}\n" for i, t in enumerate(tokenizer.tokens)))
    with atomic_write(folder / "bpe.model") as tmp:
        tmp.write_bytes(tokenizer.model)


def count_tokens(cuts: Sequence[Cut], part: str, train: bool, tokenizer: Tokenizer, dropped: list[Dropped]) -> dict[str, int]:
    """Return the number of tokens of each cut by its id; cuts that cannot be used (`UNUSABLE`) go to `dropped`.

    Dev and test utterances whose tokens do not give their text back are named: they are kept, and count as errors in scoring.
    """
    counts: dict[str, int] = {}
    unknown: list[str] = []
    texts = [cut.supervisions[0].text for cut in cuts]
    for cut, text, tokens in zip(cuts, texts, tokenizer.encode(texts), strict=True):
        counts[cut.id] = len(tokens)
        if (why := why_unusable(tokenizer, text, tokens, cut.duration)) is None:
            continue
        kind, detail = why
        if train:
            dropped.append(Dropped(cut.id, part, kind, detail))
            counts[cut.id] = UNUSABLE
        elif kind != TOO_MANY:
            unknown.append(f"{cut.id} ({detail})")
    if unknown:
        print(f"{part}: {len(unknown)} utterances have characters outside the model, kept for scoring: {first_of(unknown)}")
    return counts


def new_tokenizer(texts: Sequence[str], lang: LangConfig) -> Tokenizer:
    """Return tokens made from the texts; warn if those of bytes will not be learnt. Raises `UserError` as `train_tokenizer`."""
    size, coverage = lang.vocab_size, lang.character_coverage
    made = train_tokenizer(texts, size, coverage, characters=lang.type == "char", byte_fallback=lang.byte_fallback)
    if lang.byte_fallback and not made.uses_bytes(texts):
        print(
            f"no training transcript needs the tokens of bytes, so they are not learnt: lower lang.character_coverage "
            f"(now {coverage:g}), for example to 0.9995, or set lang.byte_fallback=false"
        )
    return made


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Make the tokens and count those of every part."""
    args = make_parser(__doc__, data_dir=True).parse_args(argv)
    writes(args.data_dir, wait=True)
    cfg = load_config(args.conf, args.overrides)
    corpus_yaml, folder = args.data_dir / "corpus.yaml", lang_dir(args.data_dir, cfg.lang)
    corpus = needs_train(load_corpus(corpus_yaml), corpus_yaml)
    texts = read_texts(args.data_dir, corpus.train)
    for other in other_folders(cfg.data, args.data_dir) if cfg.data.mix_tokens == "all" else ():
        reads(other)
        with of_key("data.mix"):
            texts += read_texts(other, needs_train(load_corpus(other / "corpus.yaml"), other / "corpus.yaml").train)
    lang = cfg.lang
    tokenizer = tokenizer_in(Path(lang.bpe_model)) if lang.bpe_model else new_tokenizer(texts, lang)
    dropped: list[Dropped] = []
    summary = Summary(args.data_dir)
    for part in corpus.parts():
        path = args.data_dir / "cuts" / f"{part}.jsonl.gz"
        cuts: list[Cut] = list(read_manifest(path, Cut, "stage 2 (cuts) of prepare.sh"))  # type: ignore[type-abstract]
        if odd := next((cut for cut in cuts if len(cut.supervisions) != 1), None):
            count = len(odd.supervisions)
            raise UserError(f"{path}: damaged: {odd.id[:80]} has {count} transcripts; run stage 2 again (--force)")
        train = part in corpus.train
        counts = count_tokens(cuts, part, train, tokenizer, dropped)
        if set(counts.values()) <= {UNUSABLE}:
            last = f"the last one dropped: {dropped[-1].line()}" if dropped else f"{path} is empty"
            raise UserError(f"part '{part}': no utterance is left; {last}")
        write_token_counts(counts, counts_file(folder, part))
        usable = [(cut.duration, counts[cut.id]) for cut in cuts if counts[cut.id] != UNUSABLE]
        summary.add_tokens(lang.tokens, part, usable, dropped)
        if train and cfg.augment.speed_perturb:
            if too_fast := sum(not tokens_fit(seconds / speed, n) for seconds, n in usable for speed in SPEEDS):
                print(f"{part}: {too_fast} speed-perturbed copies have more tokens than frames; training leaves them out")
    write_dropped(folder / "dropped.tsv", dropped)
    report_dropped(dropped, folder / "dropped.tsv")
    write_lang(tokenizer, texts, folder)
    made = tokenizer.vocab_size
    if lang.bpe_model:
        print(f"{made} tokens of {lang.bpe_model}, for {len(texts)} transcripts")
    else:
        fewer = f" (the text has no more: lang.vocab_size={lang.vocab_size})"
        print(f"{made} tokens from {len(texts)} transcripts{fewer if lang.type == 'bpe' and made < lang.vocab_size else ''}")
    print(summary.write(lang.tokens))


if __name__ == "__main__":
    main()
