"""Utterances of prepared cuts: the times of their words."""

from __future__ import annotations

from local.scoring.speech import speech_of

import pytest


def test_times_of_words_count_from_the_utterance() -> None:
    """Those of lhotse count from the start of the recording."""
    supervision = {"id": "u", "alignment": {"word": [["ONE", 10.2, 0.3, None]]}}
    found = speech_of({"id": "u", "start": 10.0, "duration": 2.0, "supervisions": [supervision]})
    assert found.words == (("ONE", pytest.approx(0.2), pytest.approx(0.5)),)
