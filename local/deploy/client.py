"""What of a configuration a client can do, what is folded into the graphs, and what is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from local.common.errors import UserError
from local.config.schema import DecodeConfig

GREEDY, BEAM, FUSION = "greedy_search", "modified_beam_search", "modified_beam_search_lm_shallow_fusion"
METHODS_OF_CLIENT = (GREEDY, BEAM)
FOLDED = ("temperature", "blank_penalty")
WHY_NOT = {  # part of a method's name -> why the client cannot run it
    "fast_beam": "it has no fast beam search",
    "LODR": "it takes the bigram as an OpenFst file only",
    "ngram": "it has no n-gram fusion",
    "ilm": "it cannot subtract the internal language model",
    "ctc": "its graphs are the transducer's, without the CTC head",
    "rescore": "it has no second pass over an n-best list",
}


def settings(options: DecodeConfig) -> DecodeConfig:
    """Return section decode as the exported model has it, folded keys included.

    One joiner serves both searches of the client. Raises `UserError` if they have different values of a folded key.
    """
    greedy, beam = (options.of_method(method) for method in METHODS_OF_CLIENT)
    for key in FOLDED:
        if getattr(greedy, key) != getattr(beam, key):
            raise UserError(
                f"key 'decode.{key}' is {getattr(greedy, key):g} for {GREEDY} and {getattr(beam, key):g} for {BEAM}; the "
                f"exported joiner has one value for both: set decode.by_method.{GREEDY}.{key} to the same, or the other"
            )
    return replace(beam, blank_skip=0.0)


def left_out(options: DecodeConfig, lm: bool, hotwords: bool) -> Iterator[str]:
    """Yield a sentence for each setting of section decode that has no effect in the client.

    lm, hotwords: whether they are exported.
    """
    for method in options.methods:
        why = next((reason for part, reason in WHY_NOT.items() if part in method), None)
        if method == FUSION and not lm:
            why = "the language model is not exported; --lm EXP/lm/lm.pt exports it"
        if why:
            yield f"method {method}: {why}"
    greedy = options.of_method(GREEDY)
    if greedy.max_sym_per_frame > 1:
        yield f"decode.max_sym_per_frame={greedy.max_sym_per_frame}: its greedy search takes one token per frame"
    if skipping := [m for m in METHODS_OF_CLIENT if options.of_method(m).blank_skip]:
        yield f"decode.blank_skip={options.of_method(skipping[0]).blank_skip:g}: it searches all frames"
    if options.tail_frames:
        yield f"decode.tail_frames={options.tail_frames}: it cannot append the utterance's own background noise, but zeros"
    if lm:
        yield "its language model fusion has no score of the end of a sentence"
    if options.of_method(BEAM).hotwords is not None and not hotwords:
        yield "decode.hotwords: not exported; --hotwords FILE exports a file of phrases"
