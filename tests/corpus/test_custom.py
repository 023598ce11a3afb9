"""A user's own corpus in each form, with what goes wrong in it named by file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

from local.common.errors import UserError
from local.corpus.corpus_yaml import Corpus, load_corpus
from local.corpus.custom import read_given, read_source, split_missing
from local.corpus.dropped import Dropped
from local.corpus.pairs import Pair, whole_file
from local.corpus.shard_store import ShardStore
from local.corpus.sources import find_part
from local.corpus.splits import split_off
from local.corpus.tables import Row, file_names, utterance_ids
from local.data.channels import make_cuts
from local.prepare_cuts import read_pairs
from local.prepare_manifests import check_pairs, drop_duplicates_and_empty
from local.prepare_manifests import main as prepare_manifests
from tests.conftest import ROOT

import numpy as np
import pytest
import soundfile
from hypothesis import example, given
from hypothesis import strategies as st
from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet

STORE = ShardStore(Path("unused"), 1.0, commands=True)
TEXTS = ["one two", "three four five", "six", "seven eight"]


def corpus(**options: object) -> Corpus:
    return Corpus("custom", "custom", ["train"], ["dev"], ["test"], options=dict(options))


def custom_parts(corpus_dir: Path, corpus: Corpus, dropped: list[Dropped]) -> dict[str, list[Pair]]:
    """Read all parts, and split the missing ones off, as if every utterance could be used."""
    return split_missing(read_given(corpus_dir, corpus, dropped, STORE, str), corpus, corpus_dir, lambda _: True)


def write_audio(path: Path, seconds: float = 0.5, rate: int = 8000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (int(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


@pytest.fixture
def audio(tmp_path: Path) -> list[str]:
    """Four files of different rates, paths relative to tmp_path."""
    names = ["wav/a.wav", "wav/b.flac", "wav/c.ogg", "wav/deep/d.wav"]
    for name, rate in zip(names, (8000, 16000, 44100, 22050), strict=True):
        write_audio(tmp_path / name, rate=rate)
    return names


def upper(text: str) -> str:
    """Return the text in upper case with single blanks."""
    return " ".join(text.split()).upper()


def import_custom(
    path: Path, part: str, dropped: list[Dropped] | None = None, clean: Callable[[str], str] = upper
) -> tuple[RecordingSet, SupervisionSet]:
    """Read one part of any form; `path` is its file or folder."""
    source = find_part(path.parent, part)
    assert source is not None and source.path == path
    pairs = read_source(source, part, [] if dropped is None else dropped, clean, STORE)
    recordings = {recording.id: recording for recording, _ in pairs}
    return RecordingSet.from_recordings(recordings.values()), SupervisionSet.from_segments(s for _, s in pairs)


def summary(found: tuple[RecordingSet, SupervisionSet]) -> list[tuple]:
    recordings, supervisions = found
    return [(s.id, s.speaker, s.text, Path(recordings[s.recording_id].sources[0].source).name) for s in supervisions]


EXPECTED = [
    ("a", "s1", "ONE TWO", "a.wav"),
    ("b", "s1", "THREE FOUR FIVE", "b.flac"),
    ("c", "s2", "SIX", "c.ogg"),
    ("d", "s2", "SEVEN EIGHT", "d.wav"),
]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.tsv", ["{0}\tone  two\ts1", "{1}\tthree four five\ts1", "{2}\tsix\ts2", "", "{3}\tseven eight\ts2"]),
        (
            "train.tsv",
            ["speaker\tpath\ttext", "s1\t{0}\tone two", "s1\t{1}\tthree four five", "s2\t{2}\tsix", "s2\t{3}\tseven eight"],
        ),
        (
            "train.csv",
            ["audio,transcript,speaker_id", '{0},"one two",s1', "{1},three four five,s1", "{2},six,s2", "{3},seven eight,s2"],
        ),
        ("train.csv", ["{0};one two;s1", "{1};three four five;s1", "{2};six;s2", "{3};seven eight;s2"]),
    ],
)
def test_tables(tmp_path: Path, audio: list[str], name: str, lines: list[str]) -> None:
    table = tmp_path / name
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).format(*audio).encode())  # as a spreadsheet saves it
    assert summary(import_custom(table, "train")) == EXPECTED


def test_a_table_without_speakers_and_with_ids(tmp_path: Path, audio: list[str]) -> None:
    (tmp_path / "t.tsv").write_text(f"id\tfile\tsentence\nfirst one\t{audio[0]}\tEins zwei\n")
    assert summary(import_custom(tmp_path / "t.tsv", "t", clean=str)) == [("first_one", None, "Eins zwei", "a.wav")]
    (tmp_path / "u.tsv").write_text(f'{audio[0]}\tsay "hi\n')  # a TSV knows no quotes
    assert summary(import_custom(tmp_path / "u.tsv", "u", clean=str.lower)) == [("a", None, 'say "hi', "a.wav")]


def test_malformed_lines_are_named_and_the_rest_is_used(tmp_path: Path, audio: list[str]) -> None:
    table = tmp_path / "train.tsv"
    table.write_text(f"{audio[0]}\tone\n{audio[1]} no tab\n\ttext\n{audio[2]}\ta\tb\tc\n{audio[3]}\tfour\n")
    dropped: list[Dropped] = []
    assert [row[0] for row in summary(import_custom(table, "train", dropped))] == ["a", "d"]
    assert [d.id for d in dropped] == [f"{table}:{number}" for number in (2, 3, 4)]
    assert all(word in d.detail for word, d in zip(("1 ", "path", "4 "), dropped, strict=True))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.tsv", b"", r"t\.tsv:"),
        ("t.tsv", b"a.wav one\nb.wav two\n", r"t\.tsv: .*t\.tsv:1: 1 "),
        ("t.tsv", b"a.wav\tone\nb.wav\t\xff\n", r"t\.tsv:2: .*UTF-8"),
        ("t.csv", b'a.wav,"one\nb.wav,two\n', "t.csv:1: "),
    ],
)
def test_the_error_for_an_unusable_table_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as e:
        import_custom(tmp_path / name, "t")
    assert "\n" not in str(e.value)


cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8))
@example([(".", "a", "b"), ("/", "c", "d"), ("./x/..", "path", "text"), ('"', '"', '"')])
def test_any_table_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]]) -> None:
    table = tmp_path_factory.mktemp("any") / "t.tsv"
    table.write_text("path\ttext\tspeaker\n" + "".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    found = custom_parts(table.parent, Corpus("c", "custom", ["t"], [], []), [])["t"]
    assert len(found) == len(rows)
    by_path: dict[str, str] = {}
    for (path, _, speaker), (_, segment) in zip(rows, found, strict=True):
        assert segment.speaker == speaker.strip()
        assert segment.id and not any(c.isspace() for c in segment.id)
        assert by_path.setdefault(path.strip(), segment.id) == segment.id
    assert len(set(by_path.values())) == len(by_path)  # different files, different ids


def test_files_of_one_name_get_ids_of_their_own() -> None:
    rows = [Row(i, p, "", "", "") for i, p in enumerate(["x/1.wav", "y/1.wav", "/z/2.wav", "x-1.wav", "x/1.wav"])]
    assert utterance_ids(rows, file_names(rows)) == ["x-1", "y-1", "2", "x-1-2", "x-1"]


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content)
    return folder


def test_kaldi_directory_of_whole_files_and_pipes(tmp_path: Path, audio: list[str]) -> None:
    scp = f"a {audio[0]}\nb cat {tmp_path / audio[1]} |\nc {tmp_path / audio[2]}\nd {audio[3]}\n"
    folder = kaldi(
        tmp_path / "data" / "train",  # wav.scp's paths count from two folders above, as in Kaldi's recipes
        wav_scp=scp,
        text="a one two\nb three four five\nc six\nd seven eight\n",
        utt2spk="a s1\nb s1\nc s2\nd s2\n",
    )
    found = import_custom(folder, "train")
    assert [row[:3] for row in summary(found)] == [row[:3] for row in EXPECTED]
    kept = check_pairs([(found[0][s.recording_id], s) for s in found[1]], "train", 1, dropped := [], STORE)
    assert [s.duration for _, s in kept] == pytest.approx([0.5] * 4, abs=1e-3) and not dropped
    piped = {s.id: recording for recording, s in kept}["b"]
    assert (piped.num_samples, piped.sampling_rate, STORE.with_audio(piped).load_audio().shape) == (8000, 16000, (1, 8000))


def test_kaldi_directory_with_segments_and_every_mistake(tmp_path: Path, audio: list[str]) -> None:
    folder = kaldi(
        tmp_path / "train",
        wav_scp=f"r {tmp_path / audio[0]}\nlone\nark foo.ark:17\nr twice.wav\npipe false |\n",
        segments="u1 r 0.1 0.3\nu2 r 0.2 -1\nu3 r x 1\nu4 gone 0 1\nu5 r 0.3 0.2\nu6 r 0 0.1\nu7 pipe 0 1\n",
        text="u1 one\nu2 two\nu7 seven\nu8 eight\n",
    )
    dropped: list[Dropped] = []
    recordings, supervisions = import_custom(folder, "train", dropped)
    assert [(s.id, s.start, s.duration, s.speaker) for s in supervisions] == [
        ("u1", 0.1, pytest.approx(0.2), None),
        ("u2", 0.2, 0.0, None),
        ("u7", 0.0, 1.0, None),
    ]
    names = {d.id.removeprefix(f"{folder}/") for d in dropped}
    assert names == {"wav.scp:2", "wav.scp:3", "wav.scp:4", "segments:3", "segments:4", "segments:5", "u6", "u8"}
    kept = check_pairs([(recordings[s.recording_id], s) for s in supervisions], "train", 1, dropped, STORE)
    assert [(s.id, s.start, s.duration) for _, s in kept] == [
        ("u1", 0.1, pytest.approx(0.2)),
        ("u2", 0.2, pytest.approx(0.3)),
    ]
    assert (dropped[-1].id, dropped[-1].kind, dropped[-1].detail) == ("u7", "command failed", "exit 1: false")


def test_kaldi_directory_without_text(tmp_path: Path, audio: list[str]) -> None:
    with pytest.raises(UserError, match="train/text "):
        import_custom(kaldi(tmp_path / "train", wav_scp=f"a {audio[0]}\n"), "train")
    with pytest.raises(UserError, match=f"{tmp_path}/train: "):
        import_custom(kaldi(tmp_path / "train", wav_scp=f"a {audio[0]}\n", text="b one\n"), "train")


def lhotse_sets(tmp_path: Path, audio: list[str]) -> tuple[RecordingSet, SupervisionSet]:
    recordings, segments = [], []
    for name, (key, speaker, text, _) in zip(audio, EXPECTED, strict=True):
        recordings.append(Recording.from_file(tmp_path / name, recording_id=f"rec-{key}"))
        segments.append(SupervisionSegment(key, f"rec-{key}", 0.0, 0.5, text=text.lower(), speaker=speaker))
    return RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(segments)


def test_lhotse_recordings_and_supervisions(tmp_path: Path, audio: list[str]) -> None:
    recordings, supervisions = lhotse_sets(tmp_path, audio)
    for recording, name in zip(recordings, audio, strict=True):
        recording.sources[0].source = name  # relative to the manifest's folder
    recordings.to_file(tmp_path / "mine_recordings_train.jsonl.gz")
    supervisions.to_file(tmp_path / "mine_supervisions_train.jsonl")
    assert summary(import_custom(tmp_path / "mine_recordings_train.jsonl.gz", "train")) == EXPECTED


def test_lhotse_cuts(tmp_path: Path, audio: list[str]) -> None:
    cuts = CutSet.from_manifests(*lhotse_sets(tmp_path, audio))
    a, b, c, d = (cut.resample(16000) if cut.sampling_rate == 44100 else cut for cut in cuts)
    mixed, shorter = a.append(b.resample(8000)), d.truncate(duration=0.2)
    CutSet.from_cuts([a, b, c, mixed, shorter]).to_file(tmp_path / "cuts_train.jsonl.gz")
    dropped: list[Dropped] = []
    assert summary(import_custom(tmp_path / "cuts_train.jsonl.gz", "train", dropped)) == EXPECTED[:3]
    assert [d.kind for d in dropped] == ["cut without a recording of its own", "supervision exceeds its cut"]


def test_lhotse_manifests_that_are_broken(tmp_path: Path, audio: list[str]) -> None:
    recordings, supervisions = lhotse_sets(tmp_path, audio)
    recordings_file = tmp_path / "recordings_train.jsonl.gz"
    recordings.to_file(recordings_file)
    with pytest.raises(UserError, match=r"supervisions_train.jsonl.gz .* recordings_train.jsonl.gz"):
        import_custom(recordings_file, "train")
    lines = [json.dumps(s.to_dict()) for s in supervisions]
    lines[1] = lines[1].replace("rec-b", "rec-x")
    lines[2:3] = ["{broken", "[1]", json.dumps({"id": "a"})]
    (tmp_path / "supervisions_train.jsonl").write_text("\n".join(lines))
    dropped: list[Dropped] = []
    assert [row[0] for row in summary(import_custom(recordings_file, "train", dropped))] == ["a", "d"]
    assert [d.id.rpartition("/")[2] for d in dropped] == [
        *("b", "supervisions_train.jsonl:3", "supervisions_train.jsonl:4", "supervisions_train.jsonl:5"),
        *("rec-b", "rec-c"),  # their supervisions are broken
    ]
    recordings_file.write_bytes(recordings_file.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"recordings_train.jsonl.gz:\d:"):
        import_custom(recordings_file, "train")
    recordings_file.write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="supervisions_train.jsonl: "):
        import_custom(recordings_file, "train")


def test_librispeech_tree(tmp_path: Path) -> None:
    for key in ("1-2-0000", "1-2-0001"):
        write_audio(tmp_path / f"train/1/2/{key}.wav")
    (tmp_path / "train/1/2/1-2.trans.txt").write_text("1-2-0000 one two\n1-2-0001 three\n")
    assert summary(import_custom(tmp_path / "train", "train")) == [
        ("1-2-0000", "1", "ONE TWO", "1-2-0000.wav"),
        ("1-2-0001", "1", "THREE", "1-2-0001.wav"),
    ]


def table_of(path: Path, speakers: int, each: int, shuffled: bool = False) -> Path:
    rows = [f"{s}-{i}.wav\tone\tspk{s}\n" for s in range(speakers) for i in range(each)]
    path.write_text("".join(reversed(rows) if shuffled else rows))
    return path


def test_missing_parts_are_split_off_by_speaker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table_of(tmp_path / "train.tsv", 20, 10)
    parts = custom_parts(tmp_path, corpus(split=0.1), [])
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0][:3] for line in said] == ["dev", "tes"]
    assert str(tmp_path) in said[0] and "20 of train's 200 utterances" in said[0] and "spk" in said[0]
    speakers = {part: {s.speaker for _, s in pairs} for part, pairs in parts.items()}
    assert {part: len(pairs) for part, pairs in parts.items()} == {"train": 160, "dev": 20, "test": 20}
    assert sum(len(s) for s in speakers.values()) == len(set().union(*speakers.values())) == 20
    table_of(tmp_path / "train.tsv", 20, 10, shuffled=True)
    again = custom_parts(tmp_path, corpus(split=0.1), [])
    assert {p: {s.id for _, s in pairs} for p, pairs in again.items()} == {
        p: {s.id for _, s in pairs} for p, pairs in parts.items()
    }


def test_few_speakers_are_split_by_utterance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table_of(tmp_path / "train.tsv", 2, 50)
    table_of(tmp_path / "test.tsv", 1, 3)
    parts = custom_parts(tmp_path, corpus(), [])
    assert {part: len(pairs) for part, pairs in parts.items()} == {"train": 80, "dev": 20, "test": 3}
    assert "20 of train's 100 utterances" in capsys.readouterr().out


@given(st.lists(st.integers(1, 30), min_size=2, max_size=30), st.sampled_from([0.01, 0.05, 0.25]))
def test_split_loses_nothing(sizes: list[int], share: float) -> None:
    pairs = [whole_file(f"{s}-{i}", Path(f"{s}-{i}.wav"), "x", speaker=str(s)) for s, n in enumerate(sizes) for i in range(n)]
    inside, outside = split_off(pairs, "dev", share, Path("."))
    assert inside and outside
    assert sorted(s.id for _, s in inside + outside) == sorted(s.id for _, s in pairs)
    if len(sizes) >= 5:
        assert not {s.speaker for _, s in inside} & {s.speaker for _, s in outside}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "lower"}, "options.normalise .*lang.normalise"),
        ({"split": 0.9}, "options.split .*0.9"),
        ({"split": "much"}, "options.split .*much"),
        ({"normalize": "upper"}, "normalize.* split"),
    ],
)
def test_wrong_options_name_the_key(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        custom_parts(tmp_path, corpus(**options), [])


def test_parts_missing_or_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'train' .* train.tsv, train.csv, train/ with wav.scp"):
        custom_parts(tmp_path, corpus(), [])
    table_of(tmp_path / "train.tsv", 1, 1)
    with pytest.raises(UserError, match="'dev' .* train "):
        custom_parts(tmp_path, corpus(), [])
    table_of(tmp_path / "train.csv", 1, 1)
    with pytest.raises(UserError, match="'train' .* 2 .*train.csv, train.tsv"):
        custom_parts(tmp_path, corpus(), [])


def test_the_folder_may_itself_be_the_data_directory(tmp_path: Path, audio: list[str]) -> None:
    lines = "".join(f"{key} {tmp_path / name}\n" for key, name in zip("abcd", audio, strict=True))
    texts = "".join(f"{key} {text}\n" for key, text in zip("abcd", TEXTS, strict=True))
    parts = custom_parts(kaldi(tmp_path / "all", wav_scp=lines, text=texts), corpus(), [])
    assert {part: len(pairs) for part, pairs in parts.items()} == {"train": 2, "dev": 1, "test": 1}


def test_stage_1_reads_it_whole(tmp_path: Path, audio: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_audio(tmp_path / "stereo.wav", channels=2)
    rows = [f"{name}\t{text}\n" for name, text in zip(audio, TEXTS, strict=True)]
    rows += ["stereo.wav\tnine\n", "gone.wav\tten\n", "wav/a.wav\tagain\n", "line\n", "wav/../wav/a.wav\t\n"]
    (tmp_path / "train.tsv").write_text("".join(rows))
    for part in ("dev", "test"):
        (tmp_path / f"{part}.tsv").write_text(rows[0])
    data = tmp_path / "data"
    prepare_manifests(
        ["--corpus-yaml", str(ROOT / "egs/custom/corpus.yaml"), "--corpus-dir", str(tmp_path), "--data-dir", str(data)]
    )
    cuts = list(make_cuts(read_pairs(data, "train"), 16000, "first", "train"))
    assert [cut.load_audio().shape for cut in cuts] == [(1, 8000)] * 5
    reasons = [line.split("\t") for line in (data / "manifests/dropped.tsv").read_text().splitlines()]
    assert sorted(r[2].split(":")[0].split(" (")[0] for r in reasons) == [
        "duplicate id, the first is kept",
        "empty transcript",
        "malformed line",
        "missing audio file",
    ]
    assert f"{tmp_path}/train.tsv:8" in capsys.readouterr().out


def test_the_committed_corpus_yaml_is_right(tmp_path: Path, audio: list[str]) -> None:
    found = load_corpus(ROOT / "egs/custom/corpus.yaml")
    (tmp_path / "train.tsv").write_text("".join(f"{a}\tx\n" for a in audio))
    assert sum(map(len, custom_parts(tmp_path, found, []).values())) == 4
    assert len(drop_duplicates_and_empty(custom_parts(tmp_path, found, [])["train"], "train", [])) == 2
