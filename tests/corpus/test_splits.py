"""Parts that are split off: after screening, large enough, and without a warning about the program's own choice."""

from __future__ import annotations

from pathlib import Path

from local.corpus.corpus_yaml import Corpus
from local.corpus.custom import split_missing
from local.corpus.pairs import Pair, whole_file
from local.prepare_cuts import main as prepare_cuts
from local.prepare_manifests import main as prepare_manifests
from tests.conftest import ROOT
from tests.corpus.stage_one import stage_1, tone, tones
from tests.speech_tree import make_part

import pytest
from lhotse import CutSet, SupervisionSet

PARTS = ("train-clean-5", "dev", "dev-clean-2")


def split(sizes: list[int], test: bool = True, share: float = 0.05) -> dict[str, list[Pair]]:
    """Split dev (and test) off a train part whose speakers have `sizes` utterances."""
    train = [
        whole_file(f"{i}-{n}", Path(f"{i}-{n}.wav"), "x", f"spk{i}" if len(sizes) > 1 else None)
        for i, size in enumerate(sizes)
        for n in range(size)
    ]
    corpus = Corpus("own", "custom", ["train"], ["dev"], ["test"] if test else [], {"split": share})
    parts = split_missing({"train": train}, corpus, Path("DIR"), lambda _: True)
    assert sorted(s.id for pairs in parts.values() for _, s in pairs) == sorted(s.id for _, s in train)
    return parts


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([1000], (50, 48)),  # the share of what is left
        ([400], (20, 20)),  # at least 20
        ([160], (20, 20)),
        ([60], (7, 7)),  # both together a quarter of train
        ([6], (1, 1)),
    ],
)
def test_the_size_of_a_part_that_is_split_off(sizes: list[int], wanted: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    parts = split(sizes)
    assert (len(parts["dev"]), len(parts["test"])) == wanted
    reasons = [line for line in capsys.readouterr().out.splitlines() if "more than a quarter" in line]
    assert [line.split(":")[0] for line in reasons] == (["dev", "test"] if wanted[0] < 20 else [])


def test_speakers_of_many_utterances_leave_little_for_dev(capsys: pytest.CaptureFixture[str]) -> None:
    parts = split([1, 1, 1, 1, 500], test=False)
    assert len(parts["dev"]) == 4 and "dev: only 4 " in capsys.readouterr().out
    parts = split([50] * 10)
    assert (len(parts["dev"]), len(parts["test"])) == (50, 50)
    assert "only" not in capsys.readouterr().out


def test_a_missing_file_of_a_speaker_with_one_utterance_stops_nothing(tmp_path: Path) -> None:
    """Whichever speaker it is, for dev and test are made of utterances that can be used."""
    names = [f"u{i}" for i in range(12)]
    tones(tmp_path / "wav", *names[:-1])
    rows = [f"wav/{name}.wav\tone\tspeaker {i}\n" for i, name in enumerate(names)]
    for n, gone in enumerate(names):
        order = [row.replace(names[-1], "x").replace(f"/{gone}.", f"/{names[-1]}.").replace("/x.", f"/{gone}.") for row in rows]
        (tmp_path / "train.tsv").write_text("".join(order))
        found, dropped = stage_1(tmp_path, tmp_path / f"work{n}", dev="[dev]", test="[test]")
        assert {part: len(utterances) for part, utterances in found.items()} == {"train": 9, "dev": 1, "test": 1}
        assert [d.id for d in dropped] == [names[-1]]


def test_a_split_of_the_program_is_not_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tones(tmp_path, *(f"u{i}" for i in range(12)))
    (tmp_path / "train.tsv").write_text("".join(f"u{i}.wav\tone\tanna\n" for i in range(12)))
    found, _ = stage_1(tmp_path, tmp_path / "work", dev="[dev]", test="[test]")
    assert {u.speaker for part in found.values() for u in part} == {"anna"} and len(found) == 3
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "test.tsv").write_text("u1.wav\tone\tanna\n")
    stage_1(tmp_path, tmp_path / "own", dev="[dev]", test="[test]")
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warned) == 1 and "train" in warned[0] and "test" in warned[0]


@pytest.mark.parametrize("short", [1, 3, 8])
def test_what_stage_2_cannot_use_is_not_split_off(tmp_path: Path, short: int) -> None:
    """Four good utterances are enough for all three parts, whichever names the short ones have."""
    lengths = {f"u{i}": 0.5 if i % 3 == 1 else 0.04 for i in range(12)}
    few = [name for name, seconds in lengths.items() if seconds == 0.04][:short]
    names = [name for name, seconds in lengths.items() if seconds == 0.5 or name in few]
    for name in names:
        tone(tmp_path / "my" / f"{name}.wav", 300, lengths[name])
    (tmp_path / "my" / "train.tsv").write_text("".join(f"{name}.wav\tone\n" for name in names))
    stage_1(tmp_path / "my", tmp_path / "work", dev="[dev]", test="[test]")
    data = tmp_path / "work" / "data"
    prepare_cuts(["--data-dir", str(data), "data.min_utterance_seconds=0.3"])
    left = {part: len(CutSet.from_file(data / "cuts" / f"{part}.jsonl.gz")) for part in ("train", "dev", "test")}
    assert left == {"train": 2, "dev": 1, "test": 1}
    rows = [row.split("\t")[:2] for row in (data / "dropped.tsv").read_text().splitlines()]
    assert sorted(rows) == sorted([name, "train"] for name in few)


def test_all_parts_are_screened_before_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In both stages: an error names all empty parts, and the bad files of each part are listed."""
    corpus = tmp_path / "my"
    tones(corpus, "a", "b")
    for name in ("d", "t"):
        tone(corpus / f"{name}.wav", 300, 0.04)
    rows = {"train": ["a", "x"], "dev": ["y"], "test": ["z"]}
    for kind in ("missing", "short"):
        for part, names in rows.items():
            (corpus / f"{part}.tsv").write_text("".join(f"{name}.wav\tone\n" for name in names))
        data = tmp_path / kind / "data"
        with pytest.raises(SystemExit):
            stage_1(corpus, tmp_path / kind, dev="[dev]", test="[test]")
            prepare_cuts(["--data-dir", str(data)])
        error = capsys.readouterr().err
        assert "'dev'" in error and "'test'" in error and "'train'" not in error
        listing = data / "dropped.tsv" if kind == "short" else data / "manifests" / "dropped.tsv"
        listed = [row.split("\t")[:2] for row in listing.read_text().splitlines()]
        assert sorted(listed) == sorted([name, part] for part, names in rows.items() for name in names if name != "a")
        rows = {"train": ["a"], "dev": ["d"], "test": ["t"]}


def test_dev_of_mini_librispeech_is_speakers_of_its_training_part_unless_it_is_there(tmp_path: Path) -> None:
    """dev-clean-2 is scored only; settings are chosen on other speakers."""

    def speakers(data: Path) -> dict[str, set[str | None]]:
        arguments = ["--corpus-yaml", str(ROOT / "egs/mini_librispeech/corpus.yaml"), "--corpus-dir", str(tmp_path / "my")]
        prepare_manifests([*arguments, "--data-dir", str(data)])
        sets = {part: SupervisionSet.from_file(data / "manifests" / f"supervisions_{part}.jsonl.gz") for part in PARTS}
        return {part: {s.speaker for s in found} for part, found in sets.items()}

    make_part(tmp_path / "my", "train-clean-5", speakers=12, utterances=3)
    make_part(tmp_path / "my", "dev-clean-2", speakers=2)
    split_off = speakers(tmp_path / "split")
    assert len(split_off["dev"]) == 3 and len(split_off["train-clean-5"]) == 9
    assert not split_off["dev"] & split_off["train-clean-5"] and len(split_off["dev-clean-2"]) == 2
    make_part(tmp_path / "my", "dev", speakers=1)
    given = speakers(tmp_path / "given")
    assert len(given["dev"]) == 1 and len(given["train-clean-5"]) == 12


@pytest.mark.parametrize(
    ("keys", "named"), [([], "dev-clean-2"), (["data.train_parts=[]"], "'dev'"), (["data.dev_parts=[x]"], "")]
)
def test_only_dev_is_split_off_the_training_part_of_mini_librispeech(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: list[str], named: str
) -> None:
    """A test set that is not there is an error: training speakers must not be scored under its name."""
    make_part(tmp_path / "my", "train-clean-5", speakers=6, utterances=2)
    if keys:
        make_part(tmp_path / "my", "dev-clean-2", speakers=1)
    arguments = ["--corpus-yaml", str(ROOT / "egs/mini_librispeech/corpus.yaml"), "--corpus-dir", str(tmp_path / "my")]
    if named:
        with pytest.raises(SystemExit):
            prepare_manifests([*arguments, "--data-dir", str(tmp_path / "data"), *keys])
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert named in line
    else:
        prepare_manifests([*arguments, "--data-dir", str(tmp_path / "data"), *keys])
        assert "x is not in" in capsys.readouterr().out


def test_a_wrong_share_is_known_before_audio_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name,) = make_part(tmp_path / "my", "train-clean-5", speakers=1, utterances=1)
    make_part(tmp_path / "my", "dev-clean-2", speakers=1)
    (tmp_path / "my" / "train-clean-5" / "100" / "1" / f"{name}.flac").write_bytes(b"")
    text = (ROOT / "egs/mini_librispeech/corpus.yaml").read_text().replace("split: 0.08", "split: 1.0")
    (tmp_path / "corpus.yaml").write_text(text)
    with pytest.raises(SystemExit):
        arguments = ["--corpus-yaml", str(tmp_path / "corpus.yaml"), "--corpus-dir", str(tmp_path / "my")]
        prepare_manifests([*arguments, "--data-dir", str(tmp_path / "data")])
    assert "options.split" in capsys.readouterr().err
