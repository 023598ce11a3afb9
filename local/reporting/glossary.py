"""What the names of decoding methods and of figures mean, in one or two sentences, to be shown where they stand."""

from __future__ import annotations

METHOD_TEXTS = {
    "greedy_search": "Takes the most probable token of each frame. The fastest method, and the usual baseline.",
    "modified_beam_search": "Keeps the decode.beam best hypotheses of each frame, with at most one token per frame.",
    "fast_beam_search": "Keeps all hypotheses within decode.fast_beam of the best one; those that end in the same tokens are "
    "merged, and count by the best alignment (decode.log_semiring: by all of them).",
    "modified_beam_search_lm_shallow_fusion": "Modified beam search that adds decode.lm_scale times the score of an LSTM "
    "language model (shallow fusion).",
    "modified_beam_search_LODR": "Shallow fusion that also subtracts decode.lodr_scale times a bigram of the training "
    "transcripts (low-order density ratio), because the transducer has learnt these transcripts already.",
    "modified_beam_search_ngram": "Modified beam search that adds decode.ngram_scale times the score of a token n-gram model.",
    "modified_beam_search_ilm": "Shallow fusion that also subtracts decode.ilm_scale times the transducer's own internal "
    "language model.",
    "modified_beam_search_lm_rescore": "Modified beam search; then an LSTM language model sorts its best hypotheses again.",
    "fast_beam_search_nbest_lm_rescore": "Fast beam search with a wide beam; then an LSTM language model sorts its best "
    "hypotheses again.",
    "fast_beam_search_nbest_oracle": "Takes the hypothesis of fast beam search's n-best list with the fewest errors. It "
    "needs the reference: a lower bound of what any rescoring could reach, not a result.",
    "fast_beam_search_LG": "Fast beam search in a graph of a lexicon and a word n-gram model: only words of the lexicon come "
    "out.",
    "ctc_greedy_search": "Takes the most probable token of the CTC head in each frame; a run of equal tokens counts once. It "
    "uses neither decoder nor joiner.",
}
COLUMN_TEXTS = {
    "set": "The decoded test set.",
    "method": "The decoding method: how words are searched in what the model computed. All methods use the same model.",
    "WER %": "Word error rate: substituted, deleted and inserted words per 100 words of the reference. 0 is best; it can "
    "exceed 100.",
    "95 % interval": "On other speech of this kind, the WER would lie here in 19 of 20 cases (bootstrap over utterances). "
    "Few words make a wide interval; two methods whose intervals overlap may still differ significantly.",
    "sub": "Substitutions: words that were recognised as another word.",
    "del": "Deletions: words of the reference that were not recognised at all.",
    "ins": "Insertions: recognised words that nobody said.",
    "words": "Words of the references.",
    "CER %": "Character error rate: the same as WER for characters. It is low if wrong words are nearly right.",
    "characters": "Characters of the references, without spaces.",
    "RTF": "Real-time factor: seconds of computation per second of audio. Below 1 is faster than speech.",
    "memory MiB": "Peak memory while this method ran: of the whole program on a CPU, of its tensors on a GPU.",
    "delay ms": "Symbol delay: mean time from the end of a correct word in the audio to its last token. Negative: the token "
    "comes before the word ends, which is usual. The frames that the front end needs first do not count.",
}
SHORT = (("modified_beam_search", "mbs"), ("fast_beam_search", "fbs"), ("lm_shallow_fusion", "LM"), ("_", " "))


def explain(name: str) -> str:
    """Return what a decoding method or a column of the WER table is; "" for any other name."""
    return METHOD_TEXTS.get(name) or COLUMN_TEXTS.get(name, "")


def short(method: str) -> str:
    """Return the name of a decoding method for a legend: `mbs LODR` for modified_beam_search_LODR. Other names stay."""
    for long, brief in SHORT if method in METHOD_TEXTS else ():
        method = method.replace(long, brief)
    return method


def counted(number: int, noun: str) -> str:
    """Return "1 row" or "5 rows"."""
    return f"{number} {noun}" + "s" * (number != 1)
