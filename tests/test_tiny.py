"""The synthesised corpus: the same seed gives the same bytes; parts do not share voices; every word can be heard."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

from local.common.errors import UserError
from local.corpus.grammar import SPEC, Phrases, assign_voices, load_spec, vocabulary
from local.corpus.synthesis import resample, speech_in, synthesise, word_times
from local.synthesise_tiny import main

import numpy as np
import pytest
import soundfile
import yaml

pytest.importorskip("espeakng_loader")


def write_spec(path: Path, **changes: object) -> Path:
    """speech.yaml with a few voices, a few seconds each, and top-level keys replaced by `changes`."""
    tree = yaml.safe_load(SPEC.read_text())
    tree["parts"] = {
        "train": {"minutes": 0.5, "voices": 6},
        "dev": {"minutes": 0.1, "voices": 2},
        "test": {"minutes": 0.1, "voices": 2},
    }
    path.write_text(yaml.safe_dump({**tree, **changes}, sort_keys=False))
    return path


def digest(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a small spec, and the corpus made of it with two processes."""
    folder = tmp_path_factory.mktemp("tiny")
    spec = write_spec(folder / "speech.yaml")
    synthesise(folder / "out", num_jobs=2, spec_path=spec)
    return spec, folder / "out"


def test_same_seed_same_bytes_whatever_the_number_of_processes(small: tuple[Path, Path], tmp_path: Path) -> None:
    spec, out = small
    synthesise(tmp_path / "again", num_jobs=1, spec_path=spec)
    assert digest(tmp_path / "again") == digest(out)
    synthesise(tmp_path / "other", num_jobs=2, seed=1, spec_path=spec)
    other, first = digest(tmp_path / "other"), digest(out)
    assert not {v for k, v in other.items() if k.endswith(".flac")} & set(first.values())


def test_layout_is_librispeechs_and_holds_speech(small: tuple[Path, Path]) -> None:
    _, out = small
    flacs = sorted(out.glob("*/*/*/*.flac"))
    transcripts = {}
    for path in out.glob("*/*/*/*.trans.txt"):
        part, speaker, chapter = path.parent.relative_to(out).parts
        assert path.name == f"{speaker}-{chapter}.trans.txt"
        for line in path.read_text().splitlines():
            utterance, text = line.split(maxsplit=1)
            assert utterance.startswith(f"{speaker}-{chapter}-") and text == text.upper()
            transcripts[path.parent / f"{utterance}.flac"] = text
    assert sorted(transcripts) == flacs and len(flacs) > 10
    for path in flacs:
        sound, rate = soundfile.read(path)
        words = len(transcripts[path].split())
        assert rate == 16000 and sound.ndim == 1
        assert 0.12 * words < len(sound) / rate < 1.2 * words + 2.5
        level = 20 * np.log10(np.sqrt(np.mean(sound**2)))
        assert -36 < level < -20 and np.abs(sound).max() < 1.0


def test_lhotse_reads_it(small: tuple[Path, Path]) -> None:
    from lhotse.recipes.librispeech import prepare_librispeech

    _, out = small
    manifests = prepare_librispeech(out, dataset_parts=["dev", "test"], num_jobs=1)
    for part in ("dev", "test"):
        assert len(manifests[part]["recordings"]) == len(list((out / part).rglob("*.flac")))
        assert all(s.text for s in manifests[part]["supervisions"])


def test_speakers_list_names_each_voice(small: tuple[Path, Path]) -> None:
    spec, out = small
    rows = [line.split(" | ") for line in (out / "SPEAKERS.TXT").read_text().splitlines() if line[0] != ";"]
    voices = assign_voices(load_spec(spec), 0)
    assert [row[0] for row in rows] == [str(v.id) for v in voices]
    for row, voice in zip(rows, voices, strict=True):
        drawn = f"rate={voice.rate} pitch={voice.pitch} range={voice.range}"
        assert row[2] == voice.part and row[4] == f"{voice.name} {drawn}"


def test_the_corpus_has_the_words_and_voices_it_promises() -> None:
    spec = load_spec()
    assert len(vocabulary(spec)) >= 40
    for seed in range(3):
        voices = assign_voices(spec, seed)
        by_part = {p: [v for v in voices if v.part == p] for p in spec.parts}
        assert len(by_part["train"]) >= 60
        assert len({v.id for v in voices}) == len({v.name for v in voices}) == len(voices)
        assert len({(v.rate, v.pitch, v.range) for v in by_part["train"]}) >= 60
        train_accents, train_variants = ({getattr(v, k) for v in by_part["train"]} for k in ("accent", "variant"))
        for held_out in by_part["dev"] + by_part["test"]:
            assert held_out.accent in train_accents and held_out.variant in train_variants
        for a, b in combinations(by_part, 2):
            assert not {v.name for v in by_part[a]} & {v.name for v in by_part[b]}


def test_phrases_say_every_word_and_only_words() -> None:
    spec = load_spec()
    phrases = Phrases(spec, "0")
    words: set[str] = set()
    for _ in range(2000):
        said, text = phrases.draw()
        assert said.replace(",", "").upper() == text and text
        words |= set(text.split())
    assert sorted(words) == vocabulary(spec)


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 4000.0, 6500.0])
def test_resampling_keeps_a_tone(frequency: float) -> None:
    source, target = 22050, 16000
    x = np.sin(2 * np.pi * frequency * np.arange(source) / source)
    y = resample(x, source, target)
    expected = np.sin(2 * np.pi * frequency * np.arange(target) / target)
    assert len(y) == target
    np.testing.assert_allclose(y[200:-200], expected[200:-200], atol=2e-3)


def test_resampling_removes_what_would_alias() -> None:
    x = np.sin(2 * np.pi * 9500.0 * np.arange(22050) / 22050)
    assert np.abs(resample(x, 22050, 16000)[200:-200]).max() < 2e-3


def test_speech_is_found_and_nothing_in_silence() -> None:
    x = np.zeros(16000)
    assert len(x[speech_in(x, 16000)]) == 0
    x[4000:8000] = 0.5
    assert speech_in(x, 16000) == slice(4000 - 320, 8000 + 320)


def test_words_end_before_pauses() -> None:
    x = np.zeros(1000)
    for start, end in ((100, 300), (320, 500), (700, 900)):
        x[start:end] = 0.5
    times = word_times(x, [90, 310, 600], 1000)  # the first two meet, a pause follows, then silence
    assert times == [(0.09, 0.3), (0.31, 0.5), (0.6, 0.9)]


def test_times_of_words_are_where_the_sound_is(small: tuple[Path, Path]) -> None:
    _, out = small
    words = 0
    for path in out.glob("*/*/*/*.trans.txt"):
        texts = dict(line.split(maxsplit=1) for line in path.read_text().splitlines())
        lines = [line.split() for line in path.with_name(path.name.replace("trans.txt", "ctm")).read_text().splitlines()]
        assert {row[0] for row in lines} == set(texts)
        for utterance, text in texts.items():
            rows = [row for row in lines if row[0] == utterance]
            assert " ".join(row[4] for row in rows) == text
            sound, rate = soundfile.read(path.parent / f"{utterance}.flac")
            starts, ends = [float(r[2]) for r in rows], [float(r[2]) + float(r[3]) for r in rows]
            assert all(a < b for a, b in zip(starts, ends, strict=True))
            assert all(b <= a + 0.002 for a, b in zip(starts[1:], ends, strict=False))
            assert starts[0] >= 0.05 and len(sound) / rate - 0.55 < ends[-1] < len(sound) / rate - 0.25
            noise = np.abs(sound[: int(0.03 * rate)]).max()
            for a, b in zip(starts, ends, strict=True):
                assert np.abs(sound[int(a * rate) : int(b * rate)]).max() > 2 * noise
                words += 1
    assert words > 30


def test_a_finished_corpus_is_replaced_and_other_folders_are_not(small: tuple[Path, Path], tmp_path: Path) -> None:
    spec, _ = small
    out = tmp_path / "out"
    synthesise(out, spec_path=spec, limit=1, num_jobs=2)
    (out / "train" / "stale").mkdir()
    stats = synthesise(out, spec_path=spec, limit=1, num_jobs=2)
    assert not (out / "train" / "stale").exists()
    assert {p: (s.voices, s.utterances) for p, s in stats.items()} == {"train": (6, 6), "dev": (2, 2), "test": (2, 2)}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="/mine: "):
        synthesise(mine, spec_path=spec)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "out"]  # no unfinished corpus is left


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": {"digit": ["ONE"]}}, "class <(room|colour|device|action|switch)>"),
        ({"phrases": {"<a>": 1}, "classes": {"a": ["<b>"], "b": ["<a>"]}}, "class <[ab]>"),
        ({"parts": {"train": {"minutes": 1}}}, "voices"),
        ({"parts": {"train": {"minutes": 1, "voices": 161}}}, "160"),
        ({"voices": {}}, "accents"),
        ({"phrases": None}, "phrases"),
        ({"sound": {"loudness": 3}}, "loudness"),
    ],
)
def test_a_wrong_spec_is_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as e:
        synthesise(tmp_path / "out", spec_path=write_spec(tmp_path / "speech.yaml", **changes))
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_a_voice_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voices = yaml.safe_load(SPEC.read_text())["voices"]
    spec = write_spec(tmp_path / "s.yaml", voices={**voices, "accents": ["en", "xx-none"]})
    with pytest.raises(SystemExit) as e:
        main(["--out", str(tmp_path / "out"), "--spec", str(spec), "--limit", "1", "--nj", "2"])
    assert e.value.code == 1
    assert "'xx-none+" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
