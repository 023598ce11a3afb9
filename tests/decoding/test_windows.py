"""Long audio in windows: every frame once, pauses found, words of overlapping windows joined."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("lhotse")

from local.common.errors import UserError
from local.decoding.audio_pieces import Resampler
from local.decoding.windows import TOLERANCE, Cutter, Window, join

import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse.augmentation.torchaudio import get_or_create_resampler

WINDOW, OVERLAP = 500, 100  # frames


def speech(*runs: tuple[int, float]) -> torch.Tensor:
    """Return features of runs of frames, each with its level."""
    noise = torch.rand(sum(length for length, _ in runs), 4, generator=torch.Generator().manual_seed(0))
    return torch.cat([torch.full((length, 4), level) for length, level in runs]) + 0.1 * noise


def cut(x: torch.Tensor, piece: int = 10_000, pause: float = 0.4) -> list[Window]:
    cutter = Cutter(WINDOW / 100, OVERLAP / 100, pause)
    return [w for part in x.split(piece) for w in cutter.accept(part)] + cutter.finish()


@given(
    st.lists(st.tuples(st.integers(1, 700), st.sampled_from([-12.0, -5.0, -4.0])), min_size=1, max_size=8), st.integers(1, 900)
)
def test_windows_hold_every_frame_once(runs: list[tuple[int, float]], piece: int) -> None:
    x = speech(*runs)
    windows = cut(x, piece)
    end = 0
    for window in windows:
        assert window.begin == end - window.overlap and 0 < len(window.features) <= WINDOW
        assert window.overlap in (0, OVERLAP) and len(window.features) > window.overlap
        assert torch.equal(window.features, x[window.begin : window.begin + len(window.features)])
        end = window.begin + len(window.features)
    assert end == len(x)
    assert [(w.begin, w.overlap) for w in windows] == [(w.begin, w.overlap) for w in cut(x)]  # whatever the pieces


def test_a_window_ends_in_a_pause() -> None:
    windows = cut(speech((200, -5), (60, -12), (230, -5), (20, -12), (300, -5)))
    assert [w.overlap for w in windows] == [0, 0, OVERLAP]  # 0.2 s is not a pause
    assert abs(windows[1].begin - 230) <= 3  # the middle


def test_a_long_pause_stands_alone() -> None:
    windows = cut(speech((100, -5), (290, -12), (90, -5)))
    assert [abs(w.begin - begin) <= 3 for w, begin in zip(windows, (0, 150, 340), strict=True)] == [True] * 3


def test_steady_sound_has_no_pause() -> None:
    assert [w.begin for w in cut(speech((1300, -9)))] == [0, 400, 800]


@pytest.mark.parametrize(
    ("values", "named"),
    [((0.5, 0.1, 1), "0.5"), ((20, 11, 1), "10"), ((20, 0, 1), "overlap"), ((20, math.nan, 1), "nan"), ((20, 4, 0.01), "0.01")],
)
def test_limits(values: tuple[float, float, float], named: str) -> None:
    with pytest.raises(UserError, match=named):
        Cutter(*values)


def words(*found: tuple[str, float]) -> list[dict]:
    return [{"word": word, "start": time, "end": time + 0.1, "confidence": 0.5} for word, time in found]


def texts(found: list[dict]) -> str:
    return " ".join(w["word"] for w in found)


def test_the_seam_is_where_both_agree() -> None:
    earlier = words(("A", 1), ("B", 16.5), ("C", 17.5), ("D", 18.6), ("X", 19.9))
    later = words(("Y", 16.4), ("C", 17.6), ("D", 18.5), ("E", 19.7), ("F", 22))
    assert texts(join(earlier, later, 16, 20)) == "A B C D E F"


def test_a_word_that_both_have_comes_once_whatever_its_time() -> None:
    apart = 0.9 * TOLERANCE
    joined = join(words(("A", 17.0), ("B", 18.0 + apart)), words(("A", 17.0), ("B", 18.0), ("C", 18.2)), 16, 20)
    assert texts(joined) == "A B C"
    assert [w["start"] for w in joined] == sorted(w["start"] for w in joined) and all(w["end"] > w["start"] for w in joined)


def test_without_agreement_the_seam_is_in_a_pause() -> None:
    assert texts(join(words(("A", 17.2), ("B", 19.5)), words(("C", 17.0), ("D", 19.2)), 16, 20)) == "A D"
    assert texts(join([], words(("C", 16.2), ("D", 19.2)), 16, 20)) == "D"  # the window's first words are unsure
    assert texts(join(words(("A", 15.0), ("B", 17.0)), [], 16, 20)) == "A B"


def test_a_window_that_heard_nothing_in_the_overlap_takes_no_words_away() -> None:
    assert texts(join([], words(("C", 18.3), ("D", 18.7), ("E", 19.1)), 16, 20)) == "C D E"
    assert texts(join(words(("A", 17.6), ("B", 17.9), ("C", 19.6)), [], 16, 20)) == "A B C"


TIMED = st.lists(st.tuples(st.sampled_from("ABC"), st.floats(0, 30)), max_size=12).map(
    lambda found: words(*sorted(found, key=lambda x: x[1]))
)


@given(TIMED, TIMED)
def test_joined_words_are_in_order(earlier: list[dict], later: list[dict]) -> None:
    earlier, later = [w for w in earlier if w["start"] < 20], [w for w in later if w["start"] >= 16]
    joined = join(earlier, later, 16, 20)
    times = [w["start"] for w in joined]
    assert times == sorted(times) and all(w["start"] < w["end"] for w in joined)
    assert [w for w in joined if w["start"] < 16 - TOLERANCE] == [w for w in earlier if w["start"] < 16 - TOLERANCE]
    sure = [w["word"] for w in later if w["start"] > 20 + TOLERANCE]
    assert not sure or [w["word"] for w in joined][-len(sure) :] == sure


@given(st.floats(0.3, 1.0), st.lists(st.sampled_from("ABCDE"), min_size=20, max_size=30), st.floats(-0.1, 0.1))
def test_nothing_is_lost_or_doubled_where_windows_agree(gap: float, said: list[str], late: float) -> None:
    every = words(*((word, gap * place) for place, word in enumerate(said)))
    middle = every[len(every) // 2]["start"]
    begin, end = middle - 2, middle + 2
    earlier = [w for w in every if w["start"] < end]
    later = [{**w, "start": w["start"] + late, "end": w["end"] + late} for w in every if w["start"] >= begin]
    assert texts(join(earlier, later, begin, end)) == "".join(f"{word} " for word in said).strip()


@pytest.mark.parametrize(("source", "target"), [(8000, 16000), (44100, 16000), (22051, 16000), (16000, 8000)])
def test_resampling_in_pieces_equals_the_whole(source: int, target: int) -> None:
    x = torch.randn(2, source + 77, generator=torch.Generator().manual_seed(0))
    pieces = Resampler(source, target, 2)
    found = torch.cat([*(pieces.accept(part) for part in x.split(3001, 1)), pieces.finish()], 1)
    whole = get_or_create_resampler(source, target)(x)
    assert found.shape == whole.shape and (found - whole).abs().max() < 1e-4
