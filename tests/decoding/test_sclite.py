"""Files for sclite: ids and speakers, empty texts, characters that sclite would take for markup."""

from __future__ import annotations

from local.decoding.sclite import sclite_files, trn_id

import pytest


def line(utterance: str, ref: str, hyp: str) -> dict[str, object]:
    words = [{"word": w, "start": i, "end": i + 0.2, "confidence": 0.5} for i, w in enumerate(hyp.split())]
    return {"id": utterance, "ref": ref, "hyp": hyp, "words": words}


def test_texts_and_times() -> None:
    found = sclite_files([line("a-1", "ONE  TWO", "ONE"), line("x 2", "THREE", "")], {"a-1": "a", "x 2": "ann"})
    assert found == {
        ".hyp.trn": "ONE (a-1)\n(ann-x_2)\n",
        ".ref.trn": "ONE TWO (a-1)\nTHREE (ann-x_2)\n",
        ".ctm": "a-1 1 0.00 0.20 ONE 0.5000\n",
    }


def test_what_sclite_takes_for_markup() -> None:
    found = sclite_files([line("u(1)", ";; (uh) { a / b } and/or @ a@b a;b *a*", "\x1b[2J\u202e")], {})
    special = "%3B%3B %28uh%29 %7B a %2F b %7D and/or %40 a@b a%3Bb %2Aa%2A"
    assert found[".ref.trn"] == f"{special} (u%281%29)\n"
    assert found[".hyp.trn"] == "%5Cx1b[2J%5Cu202e (u%281%29)\n"


@pytest.mark.parametrize(
    ("utterance", "speaker", "expected"),
    [("84-1-0", "84", "84-1-0"), ("84_1", "84", "84_1"), ("841", "84", "84-841"), ("u", "a b", "a_b-u"), ("u", "", "u")],
)
def test_the_speaker_comes_first(utterance: str, speaker: str, expected: str) -> None:
    assert trn_id(utterance, speaker) == expected
