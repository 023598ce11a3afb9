"""Audio in pieces gives the results of the whole audio: features, encoder and every search."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lhotse")
pytest.importorskip("soundfile")

from local.common.errors import UserError
from local.config import load_config
from local.config.schema import FeaturesConfig
from local.data.features import PADDING, make_extractor
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.decoding.batch_decoder import with_tail
from local.decoding.endpoint import EndpointRules
from local.decoding.streaming import EncoderStream, FeatureStream, StreamingRecogniser, frames_per_chunk, words_of
from local.decoding.word_times import level_of, shifted, timed_words
from model.build import build_model
from model.encoder.subsampling import subsampled
from model.search import STREAMS, Hypothesis, Stream, get_search, get_stream
from model.transducer import Transducer
from tests.reference import load_reference_model

import soundfile

RATE, TAIL = 16000, 30
FEATURES = FeaturesConfig(type="on_the_fly", num_mel_bins=80, sampling_rate=RATE)
# The models here have no CTC head.
OPTIONS: dict[str, dict[str, Any]] = {name: {} for name in STREAMS if name != "ctc_greedy_search"}
OPTIONS["fast_beam_search"] = {"allow_partial": True}
Results = dict[str, Hypothesis]  # by utterance


pytestmark = pytest.mark.usefixtures("one_thread")


def pieces(whole: torch.Tensor, rng: random.Random, largest: int) -> Iterator[torch.Tensor]:
    """Cut `whole` along its first axis into pieces of 0 to `largest`."""
    begin = 0
    while begin < len(whole):
        size = rng.randint(0, largest)
        yield whole[begin : begin + size]
        begin += size


class Several:
    """Several searches as one stream, so that the encoder runs once; its result is that of greedy search."""

    def __init__(self, model: Transducer) -> None:
        self.streams = {name: get_stream(name)(model, **options) for name, options in OPTIONS.items()}
        self.finals: dict[str, Hypothesis] = {}

    def start(self, num_utts: int) -> None:
        for s in self.streams.values():
            s.start(num_utts)

    def advance(self, out: torch.Tensor, lens: torch.Tensor) -> None:
        for s in self.streams.values():
            s.advance(out, lens)

    def results(self, final: bool = True) -> list[Hypothesis]:
        found = {name: s.results(final)[0] for name, s in self.streams.items()}
        self.finals = found if final else self.finals
        return [found["greedy_search"]]


@torch.no_grad()
def in_batches(model: Transducer, features: dict[str, torch.Tensor], ids: list[str], sizes: list[int]) -> dict[str, Results]:
    """Return, by method, the results of whole utterances, in batches of `sizes` in the order of `ids`."""
    found: dict[str, Results] = {name: {} for name in OPTIONS}
    begin = 0
    for size in sizes:
        batch = ids[begin : begin + size]
        if not batch:
            break
        begin += size
        lens = torch.tensor([len(features[i]) for i in batch])
        x = torch.nn.utils.rnn.pad_sequence([features[i] for i in batch], batch_first=True, padding_value=PADDING)
        out, out_lens, _ = model.encoder(*with_tail(x, lens, TAIL))
        out_lens = out_lens.masked_fill(subsampled(lens) < 1, 0)
        for name, options in OPTIONS.items():
            found[name].update(zip(batch, get_search(name)(model, out, out_lens, **options), strict=True))
    return found


def in_chunks(model: Transducer, audio: dict[str, torch.Tensor], tokenizer: Tokenizer, seed: int) -> dict[str, Results]:
    """Return, by method, the results of audio in random pieces; each utterance has its own random chunk size."""
    found: dict[str, Results] = {name: {} for name in OPTIONS}
    several: Any = Several(model)
    rng = random.Random(seed)
    for i, samples in audio.items():
        size = 4 * rng.randint(1, 40)
        recogniser = StreamingRecogniser(model.encoder, several, tokenizer, FEATURES, chunk_frames=size, tail_frames=TAIL)
        for piece in pieces(samples, rng, 160 * rng.choice([1, 20, 300])):
            assert recogniser.accept(piece, RATE) == []
        (segment,) = recogniser.finish()
        assert (segment.begin, segment.text) == (0.0, tokenizer.decode(several.finals["greedy_search"].tokens))
        for name, hypothesis in several.finals.items():
            found[name][i] = hypothesis
    return found


def assert_same(expected: dict[str, Results], found: dict[str, Results], how: str) -> None:
    """Compare the tokens of every utterance; the message names those that differ and the gap between the scores."""
    wrong, gap = [], 0.0
    for name, results in expected.items():
        assert results.keys() == found[name].keys()
        for i, a in results.items():
            b = found[name][i]
            gap = max(gap, 0.0 if a.score == b.score else abs(a.score - b.score))
            if (a.tokens, a.times) != (b.tokens, b.times):
                wrong.append(f"{name} {i}: {a.tokens} alone, {b.tokens} {how}; scores {a.score:.6f}, {b.score:.6f}")
    assert not wrong, "\n".join(wrong)
    assert gap < 1e-4, f"scores {how} differ by up to {gap}"


def check_all(model: Transducer, audio: dict[str, torch.Tensor], tokenizer: Tokenizer) -> int:
    """Compare results alone, in batches and in chunks; return the number of tokens."""
    fbank = make_extractor(FEATURES)
    features = {i: fbank.extract(a, RATE) for i, a in audio.items()}
    ids, rng, n = sorted(features), random.Random(1), len(features)
    alone = in_batches(model, features, ids, [1] * n)
    assert_same(alone, in_batches(model, features, ids, [30] * math.ceil(n / 30)), "in batches of 30")
    mixed = rng.sample(ids, n)
    sizes = [rng.choice([2, 7, 19, 50]) for _ in range(n)]
    assert_same(alone, in_batches(model, features, mixed, sizes), "in batches of any size, in any order")
    assert_same(alone, in_chunks(model, audio, tokenizer, 2), "in chunks")
    return sum(len(h.tokens) for results in alone.values() for h in results.values())


@pytest.mark.slow
def test_speech_alone_in_batches_and_in_chunks(shared: Path) -> None:
    """Use all of dev-clean-2 and 20 utterances of train-clean-5 with a trained model."""
    folder = shared / "speech" / "LibriSpeech-digits"
    files = [sorted((folder / part).rglob("*.flac")) for part in ("dev-clean-2", "train-clean-5")]
    files[1] = files[1][:: len(files[1]) // 20][:20]
    audio = {str(f): torch.from_numpy(soundfile.read(f, dtype="float32")[0]) for part in files for f in part}
    assert len(audio) == 200
    model = load_reference_model(shared / "reference" / "digits_model.npz")
    tokenizer = Tokenizer.from_file(shared / "reference" / "digits_bpe.model")
    assert check_all(model, audio, tokenizer) > 3000  # type: ignore[arg-type]


def small_model(vocab_size: int = 20, **encoder: Any) -> Transducer:
    """Make an untrained model whose tokens depend on the loudness."""
    small = {"num_layers": 2, "d_model": 16, "rnn_hidden_size": 24, "dim_feedforward": 16} | encoder
    overrides = [f"model.encoder.{key}={value}" for key, value in small.items()]
    torch.manual_seed(1)
    model = build_model(load_config(None, [*overrides, "model.decoder.dim=16", "model.joiner.dim=16"]), vocab_size)
    with torch.no_grad():
        for name, parameter in model.encoder.encoder_embed.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(std=0.2)
        for part in (model.decoder.embedding, model.joiner.decoder_proj):
            part.weight.normal_(std=0.3)
        for part in (model.joiner.encoder_proj, model.joiner.output_linear):
            part.weight.normal_()
        model.joiner.output_linear.bias[:3] = torch.tensor([6.0, -9.0, -9.0])
    return model.eval()


def bursts(seconds: list[float]) -> dict[str, torch.Tensor]:
    """Make noise of changing loudness, one utterance for each length in `seconds`."""
    generator = torch.Generator().manual_seed(0)
    times = [torch.arange(int(RATE * s)) / RATE for s in seconds]
    return {
        str(i): 0.2 * torch.randn(len(t), generator=generator) * ((2.1 * t).sin() * (7 * t).sin()).clamp(min=0)
        for i, t in enumerate(times)
    }


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["ONE TWO THREE", "TWO ONE", "THREE"], 20)


def test_noise_alone_in_batches_and_in_chunks(tokenizer: Tokenizer) -> None:
    lens = [2.0, 0.02, 0.0, 0.005, 0.0899, 0.09, 0.1, 0.15, 0.51, 1.0, 3.0]  # below 0.09 s: too short for the front end
    audio = {i: a for i, a in bursts(lens).items() if len(a) > 200}
    assert check_all(small_model(tokenizer.vocab_size), audio, tokenizer) > 60
    nothing = in_chunks(small_model(tokenizer.vocab_size), bursts([0.0, 0.005, 0.02, 0.0799]), tokenizer, 0)
    assert all(h.tokens == [] for results in nothing.values() for h in results.values())


@settings(max_examples=60)
@given(st.integers(140, 6000), st.lists(st.integers(0, 900), max_size=40), st.sampled_from([8000, 16000]), st.booleans())
def test_features_in_pieces(num_samples: int, sizes: list[int], rate: int, silence: bool) -> None:
    config = FeaturesConfig(type="on_the_fly", num_mel_bins=40, sampling_rate=rate)
    audio = 0.3 * torch.randn(num_samples, generator=torch.Generator().manual_seed(num_samples))
    audio[num_samples // 3 : num_samples // 2 if silence else 0] = 0
    whole = make_extractor(config).extract(audio, rate)
    features = FeatureStream(config)
    window, shift, left = rate // 40, rate // 100, (rate // 40 - rate // 100) // 2
    for _ in range(2):  # the second time after `reset`
        begin, found = 0, []
        for size in [*sizes, num_samples]:
            found.append(features.accept(audio[begin : begin + size]))
            begin += size
            # A frame waits only until its window is complete.
            assert sum(map(len, found)) == max(0, (min(begin, num_samples) - (window - left)) // shift + 1)
        found.append(features.finish())
        features.reset()
        assert torch.cat(found).shape == whole.shape
        assert torch.allclose(torch.cat(found), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"rnn": "gru", "rnn_hidden_size": 16}, {"rnn": "rnn", "rnn_hidden_size": 16}]
    + [{"norm": norm} for norm in ("layer", "batch", "group", "none")]
    + [{"activation": "tanh"}],
)
@torch.no_grad()
def test_encoders_in_chunks(options: dict[str, Any]) -> None:
    encoder, rng = small_model(**options).encoder, random.Random(0)
    for num_frames, size in ((9, 4), (12, 4), (13, 8), (150, 4), (150, 40), (151, 148), (36, 32), (37, 32), (40, 32)):
        x = 3 * torch.randn(num_frames, 80)
        for tail in (0, 5):
            expected = encoder(*with_tail(x.unsqueeze(0), torch.tensor([num_frames]), tail))[0]
            chunks = EncoderStream(encoder, size, tail)
            for _ in range(2):  # the second time after `finish`
                found = []
                for piece in pieces(x, rng, 30):
                    chunks.accept(piece)
                    while (out := chunks.next_chunk()) is not None:
                        assert out.shape[1] == size // 4
                        found.append(out)
                out, heard = chunks.finish()
                assert heard == num_frames
                found.append(out)
                assert torch.cat(found, 1).shape == expected.shape
                assert (torch.cat(found, 1) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_words_have_the_times_of_the_whole_utterance(tokenizer: Tokenizer) -> None:
    """Also after an endpoint, and with a feature floor; a partial result has the level of what it has heard."""
    (audio,) = bursts([5.0]).values()
    model = small_model(tokenizer.vocab_size)
    model.encoder.feature_floor = torch.full((80,), -9.0)
    rules = EndpointRules(longest=2.0)
    search = get_stream("greedy_search")(model)
    recogniser = StreamingRecogniser(
        model.encoder, search, tokenizer, FEATURES, chunk_frames=32, tail_frames=TAIL, endpoint=rules
    )
    floored = torch.maximum(make_extractor(FEATURES).extract(audio, RATE), model.encoder.feature_floor)
    for _ in range(2):  # the second time after `finish`
        found = []
        for piece in audio.split(1000):
            found += recogniser.accept(piece, RATE)
            partial = recogniser.partial()
            assert len(partial.level) == round(100 * (partial.end - partial.begin))
        found += recogniser.finish()
        assert len(found) > 2
        for segment in found:
            whole = level_of(floored[round(100 * segment.begin) : round(100 * segment.end)])
            assert segment.level == pytest.approx(whole, abs=1e-4)
            expected = shifted(timed_words(segment.hypothesis, tokenizer, whole), segment.begin)
            assert words_of(segment, tokenizer) == expected
        assert sum(len(words_of(segment, tokenizer)) for segment in found) > 3


def test_errors_name_what_cannot_be_streamed(tokenizer: Tokenizer) -> None:
    model = small_model(norm="instance")
    with pytest.raises(UserError, match="norm=instance"):
        EncoderStream(model.encoder, 32, TAIL)
    model = small_model()
    with pytest.raises(UserError, match="30.* 4$"):
        EncoderStream(model.encoder, 30, TAIL)
    k2 = get_stream("fast_beam_search")(model, backend="k2")
    with pytest.raises(UserError, match="k2"):
        StreamingRecogniser(model.encoder, k2, tokenizer, FEATURES, chunk_frames=32, tail_frames=TAIL)
    greedy = get_stream("greedy_search")(model)
    recogniser = StreamingRecogniser(model.encoder, greedy, tokenizer, FEATURES, chunk_frames=32, tail_frames=TAIL)
    with pytest.raises(UserError, match="8000 .*16000 "):
        recogniser.accept(torch.zeros(80), 8000)
    assert [frames_per_chunk(s) for s in (0.04, 0.05, 0.32, 0.3, 10)] == [4, 4, 32, 32, 1000]
    for seconds in (0.03, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="0.04"):
            frames_per_chunk(seconds)


def test_endpoint_rules() -> None:
    rules = EndpointRules(nothing_said=2.0, silence=1.0, longest=4.0)
    for num_frames in range(121):
        expected = "longest" if num_frames >= 100 else None
        assert rules.fired(num_frames, None, 0.04) == ("nothing_said" if num_frames >= 50 else None)
        for last in range(0, num_frames, 7):
            silent = num_frames - 1 - last  # frames after the last token's
            assert rules.fired(num_frames, last, 0.04) == ("silence" if silent >= 25 else expected)
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match="silence"):
            EndpointRules(silence=bad)


@torch.no_grad()
def at_once(model: Transducer, search: Stream, x: torch.Tensor, tail: int) -> Stream:
    """Return the search after the whole encoder output of features (T, F) and a tail."""
    out, lens, _ = model.encoder(*with_tail(x.unsqueeze(0), torch.tensor([len(x)]), tail))
    search.start(1)
    search.advance(out, lens)
    return search


@pytest.mark.parametrize("name", OPTIONS)
def test_utterances_found(tokenizer: Tokenizer, name: str) -> None:
    """Each begins at the end of the one before, ends at the first chunk after which a rule fires, and equals itself alone."""
    model = small_model(tokenizer.vocab_size)
    audio = bursts([6.0])["0"]
    features = make_extractor(FEATURES).extract(audio, RATE)
    rules, size = EndpointRules(nothing_said=0.3, silence=0.2, longest=0.6), 16
    search, again = (get_stream(name)(model, **OPTIONS[name]) for _ in range(2))
    recogniser = StreamingRecogniser(
        model.encoder, search, tokenizer, FEATURES, chunk_frames=size, tail_frames=TAIL, endpoint=rules
    )
    for seed in range(2):
        found = []
        for piece in pieces(audio, random.Random(seed), (300, 30000)[seed]):
            found += recogniser.accept(piece, RATE)
        found += recogniser.finish()
        ends = [round(100 * s.end) for s in found]
        begins = [round(100 * s.begin) for s in found]
        assert begins == [0, *ends[:-1]] and ends[-1] == len(features)
        fired = set()
        for begin, end, segment in zip(begins, ends, found, strict=True):
            x = features[begin:end]
            alone = at_once(model, again, x, TAIL).results()[0]
            assert (segment.hypothesis.tokens, segment.hypothesis.times) == (alone.tokens, alone.times)
            for frames in range(size + 5, len(x) + 1, size):
                times = at_once(model, again, x[:frames], 0).results(final=False)[0].times
                rule = rules.fired(subsampled(frames), times[-1] if times else None, 0.04)
                assert (rule is not None) == (frames == len(x) and segment is not found[-1])
                fired.add(rule)
        assert fired == {None, "nothing_said", "silence", "longest"}
