"""The supported forms: who writes each, what may be wrong in it, and the strategies that draw corpora."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.own_data import lhotse_writers, shar_writer, writers
from tests.own_data.plans import FILE_HARMS, RATES, SECONDS, SHORT, TEXTS, PartPlan, SoundPlan, UtterancePlan
from tests.own_data.spoil import SPOILS
from tests.own_data.tones import CODECS

from hypothesis import strategies as st


@dataclass(frozen=True)
class Form:
    """A form of a part: its writer, what may be wrong with its lines and with what it states of a file."""

    write: Callable
    line_harms: tuple[str, ...]
    stated_harms: tuple[str, ...] = ()
    segments: bool = False  # several utterances in a file
    by_channel: bool = False  # an utterance may be in the second channel
    file_harms: tuple[str, ...] = tuple(FILE_HARMS)
    codecs: tuple[str, ...] = tuple(CODECS)


STATED = tuple(lhotse_writers.STATED_HARMS)
TREE_FILE_HARMS = tuple(h for h in FILE_HARMS if h != "no header")  # a tree does not say which files are audio
FORMS = {
    "table": Form(writers.table, writers.TABLE_HARMS),
    "kaldi": Form(writers.kaldi, writers.KALDI_HARMS),
    "kaldi segments": Form(writers.kaldi_segments, writers.SEGMENT_HARMS, segments=True),
    "librispeech": Form(
        writers.librispeech, writers.TREE_HARMS, file_harms=TREE_FILE_HARMS, codecs=tuple(c for c in CODECS if c != "sphere")
    ),
    "manifests": Form(lhotse_writers.manifests, lhotse_writers.LINE_HARMS, STATED, segments=True, by_channel=True),
    "cuts": Form(lhotse_writers.cuts, lhotse_writers.LINE_HARMS, STATED, segments=True, by_channel=True),
    "shar": Form(
        shar_writer.shar, ("empty text",), segments=True, by_channel=True, file_harms=(), codecs=("wav", "flac", "mp3")
    ),
    "nemo": Form(writers.nemo, ("empty text", "malformed", "outside", "nan", "repeated"), segments=True),
    "common voice": Form(writers.common_voice, ("empty text", "malformed", "repeated")),
    "ljspeech": Form(writers.ljspeech, ("empty text", "malformed", "repeated")),
    "beside txt": Form(writers.beside_txt, ("empty text", "no text"), file_harms=TREE_FILE_HARMS),
    "own names": Form(lhotse_writers.own_names, lhotse_writers.LINE_HARMS, STATED, segments=True, by_channel=True),
}


def mostly_none(harms: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Draw "" four times of five, else one of `harms`."""
    return st.sampled_from([""] * (4 * len(harms) or 1) + [*harms])


def utterances(form: Form, channels: int) -> st.SearchStrategy[UtterancePlan]:
    """Draw an utterance; two of three have nothing wrong with them."""
    return st.builds(
        UtterancePlan,
        seconds=st.sampled_from([*SECONDS * 6, SHORT]),
        text=st.sampled_from(TEXTS),
        channel=st.integers(0, channels - 1) if form.by_channel else st.just(0),
        harm=mostly_none(form.line_harms),
    )


@st.composite
def sounds(draw: st.DrawFn, form: Form) -> SoundPlan:
    """Draw a file with its utterances; most have nothing wrong with them."""
    codec = draw(st.sampled_from(form.codecs) | st.sampled_from(("wav", "flac")))
    channels = draw(st.sampled_from((1, 1, 2)))
    spoken = draw(st.lists(utterances(form, channels), min_size=1, max_size=3 if form.segments else 1))
    harm = draw(mostly_none((*form.file_harms, *form.stated_harms)))
    if harm == "NaN":
        codec = "float"
    elif harm == "no header":
        codec = "wav"
    return SoundPlan(codec, draw(st.sampled_from(RATES)), channels, tuple(spoken), harm)


@st.composite
def parts(draw: st.DrawFn, names: tuple[str, ...], least: int, most: int) -> PartPlan:
    """Draw a part in one of the forms `names`, with `least` to `most` files."""
    name = draw(st.sampled_from(names))
    files = draw(st.lists(sounds(FORMS[name]), min_size=least, max_size=most))
    style = draw(st.lists(st.booleans(), min_size=6, max_size=6))
    damaged = name == "shar" and style[2]  # already
    spoiled = "" if damaged else draw(st.sampled_from([""] * 40 + [*SPOILS]))
    return PartPlan(name, tuple(files), tuple(style), (spoiled, draw(st.integers(0, 3)) if spoiled else 0))


def corpora(names: tuple[str, ...] = tuple(FORMS)) -> st.SearchStrategy[dict[str, PartPlan]]:
    """Draw a corpus: train, perhaps dev and test, each in a form of its own."""
    return st.fixed_dictionaries(
        {"train": parts(names, 4, 7)}, optional={"dev": parts(names, 2, 4), "test": parts(names, 2, 4)}
    )
