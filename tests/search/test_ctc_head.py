"""What the CTC head serves in decoding: a greedy search of its own, and frames that the transducer's searches leave out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from model.search import STREAMS, Hypothesis, get_search, get_stream
from model.transducer import Transducer

import pytest
import torch
from test_streams import assert_same
from toy import random_chunks, toy_batch, toy_model

TRANSDUCER = [name for name in STREAMS if name != "ctc_greedy_search"]
SKIP = 1e-5  # the toys' heads know no blank: this leaves out about half of the frames


@torch.no_grad()
def plain_ctc(model: Transducer, frames: torch.Tensor, penalty: float, temperature: float) -> Hypothesis:
    assert model.ctc_head is not None
    best = []
    for frame in frames:
        logits = model.ctc_head.output_linear(frame).double()
        logits[model.blank_id] -= penalty
        log_probs = (logits / temperature).log_softmax(-1)
        best.append((int(log_probs.argmax()), float(log_probs.max())))
    found = Hypothesis([], [], sum(score for _, score in best))
    for token, run in itertools.groupby(range(len(best)), key=lambda t: best[t][0]):
        if token not in (model.blank_id, model.unk_id):
            time = next(run)
            found.tokens.append(token)
            found.times.append(time)
            found.confidences.append(float(torch.tensor(best[time][1]).exp()))
    return found


@pytest.mark.parametrize(("penalty", "temperature"), [(0.0, 1.0), (-3.0, 0.5), (2.0, 3.0)])
def test_ctc_greedy(penalty: float, temperature: float) -> None:
    repeated = 0
    for seed in range(4):
        model, (out, lens) = toy_model(seed, vocab_size=4 + 4 * seed), toy_batch(seed)
        out = out.repeat_interleave(2, dim=1)  # runs of one token
        found = get_search("ctc_greedy_search")(model, out, 2 * lens, blank_penalty=penalty, temperature=temperature)
        assert_same(found, [plain_ctc(model, x[: 2 * n], penalty, temperature) for x, n in zip(out, lens, strict=True)])
        repeated += sum(a == b for h in found for a, b in itertools.pairwise(h.tokens))
    assert repeated > 0 or penalty > 0, "equal tokens with a blank between them must occur"


def kept(model: Transducer, frames: torch.Tensor, threshold: float) -> list[int]:
    """Return the frames (T, C) that are searched, by a loop."""
    assert model.ctc_head is not None
    blank = [float(model.ctc_head(frame)[model.blank_id].exp()) for frame in frames]
    return [t for t, probability in enumerate(blank) if probability <= threshold]


@pytest.mark.parametrize("name", TRANSDUCER)
@torch.no_grad()
def test_the_rest_is_searched_as_if_it_were_all(name: str) -> None:
    """The hypotheses are those of an utterance without the frames, their times those of the whole one."""
    dropped, last = 0, 0
    for seed in range(3):
        model, (out, lens) = toy_model(seed), toy_batch(seed, num_utts=8, max_frames=30)
        found = get_search(name)(model, out, lens, blank_skip=SKIP)
        for hypothesis, x, length in zip(found, out, lens.tolist(), strict=True):
            frames = kept(model, x[:length], SKIP)
            if name == "fast_beam_search" and length and length - 1 not in frames:
                frames.append(length - 1)  # it ends the utterance
                last += 1
            dropped += length - len(frames)
            expected = get_search(name)(model, x[frames].unsqueeze(0), torch.tensor([len(frames)]))[0]

            def timed(h: Hypothesis, frames: list[int] = frames) -> Hypothesis:
                return replace(h, times=[frames[t] for t in h.times], nbest=h.nbest and [timed(entry) for entry in h.nbest])

            assert_same([hypothesis], [timed(replace(expected, nbest=expected.nbest and [replace(e) for e in expected.nbest]))])
    assert dropped > 50 and (last > 0 or name != "fast_beam_search")


@pytest.mark.parametrize("name", TRANSDUCER)
def test_nothing_changes_if_no_frame_exceeds_the_threshold(name: str) -> None:
    model, (out, lens) = toy_model(1), toy_batch(1)
    assert get_search(name)(model, out, lens, blank_skip=1.0) == get_search(name)(model, out, lens)


@pytest.mark.parametrize("name", TRANSDUCER)
def test_everything_left_out(name: str) -> None:
    """In chunks, of which some are empty."""
    model, (out, lens) = toy_model(2), toy_batch(2)
    stream = get_stream(name)(model, blank_skip=1e-300)
    stream.start(len(lens))
    for chunk in random_chunks(out, lens, 2):
        stream.advance(*chunk)
    assert all(h.tokens == h.times == [] for h in stream.results())


@pytest.mark.parametrize(
    ("name", "options"), [("ctc_greedy_search", {}), *((name, {"blank_skip": 0.9}) for name in TRANSDUCER)]
)
def test_a_model_without_head_is_refused(name: str, options: dict[str, Any]) -> None:
    model = toy_model(0)
    model.ctc_head = None
    with pytest.raises(ValueError, match=r"CTC head.*loss\.ctc_scale"):
        get_stream(name)(model, **options)
    if options:
        get_stream(name)(model)


def test_the_joiner_takes_no_part_in_ctc_greedy_search() -> None:
    """Nor do its limits: contexts that are too many to number."""
    model = toy_model(0)
    search = get_stream("ctc_greedy_search")(model)
    x, lens = torch.randn(2, 9, model.joiner.encoder_proj.weight.shape[1]), torch.tensor([9, 5])
    expected = [h.tokens for h in search.decode(x, lens)]
    model.joiner = None
    assert [h.tokens for h in get_stream("ctc_greedy_search")(model).decode(x, lens)] == expected
    with pytest.raises(ValueError, match="temperature"):
        get_stream("ctc_greedy_search")(model, temperature=0.0)


def test_k2_searches_all_frames() -> None:
    with pytest.raises(ValueError, match="k2"):
        get_stream("fast_beam_search")(toy_model(0), backend="k2", blank_skip=0.9)
