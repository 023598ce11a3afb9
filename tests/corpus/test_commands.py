"""Names and sources of audio from outside: no program runs and nothing is fetched, unless corpus.yaml allows it."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.compute_features import main as compute_features
from local.config import load_config
from local.corpus import commands
from local.corpus.audio_reading import BadAudio, load_audio
from local.corpus.commands import CommandFailed, run
from local.corpus.corpus_yaml import load_corpus
from local.corpus.shard_store import ShardStore, shards_of
from local.data.datamodule import AsrDataModule
from local.data.tokenizer import Tokenizer
from local.decoding.audio_pieces import open_checked
from local.prepare_lang import main as prepare_lang
from local.prepare_noise import main as prepare_noise
from tests.conftest import ROOT
from tests.corpus.noise_corpus import (
    RATE,
    TEXT,
    allow_commands,
    dropped,
    equal,
    lhotse_manifests,
    loaded,
    prepare,
    recording,
    segment,
    table,
    write,
)

import lhotse.serialization
import numpy as np
import pytest
from lhotse import AudioSource, CutSet, Features, MonoCut, Recording
from lhotse.augmentation import ReverbWithImpulseResponse

OPTIONS = ["data.num_workers=0", "augment.musan_prob=1.0"]
HOSTILE = (
    "a;touch PWNED;.sph",
    "b$(touch PWNED).wav",
    "c`touch PWNED`.flac",
    "d|touch PWNED",
    "-i touch PWNED.ogg",
    "pipe:touch PWNED #.wav",
    "e&touch PWNED&.mp3",
    "f'\"; touch PWNED #.wav",
)


@pytest.fixture
def here(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the working directory, where PWNED would appear."""
    (corpus.parent / "here").mkdir()
    monkeypatch.chdir(corpus.parent / "here")
    return corpus.parent / "here"


def batches(data: Path, *overrides: str) -> dict[str, int]:
    """Return how many utterances training and decoding load, and how many they leave out."""
    cfg = load_config(None, [*OPTIONS, *overrides])
    module = AsrDataModule(cfg, data, Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    train, test = module.train_dataloader(1), module.test_dataloader("train")
    found = {"train": sum(len(b.ids) for b in train), "test": sum(len(b.ids) for b in test)}
    return {**found, "skipped": train.skipped + test.skipped}


def test_names_of_files_reach_no_shell(corpus: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All programs read files of hostile names: preparation, features, training, decoding, noise, stream."""
    audio = {name: write(corpus / name, n, 6.0, format="WAV") for n, name in enumerate(HOSTILE)}
    names = {f"u{n}": name for n, name in enumerate(HOSTILE)}
    lines = [json.dumps({"audio_filepath": name, "text": TEXT, "id": key}) for key, name in names.items()]
    (corpus / "train.json").write_text("\n".join(lines) + "\n")
    options = [f"augment.musan={corpus}"]
    cuts, reasons = prepare(corpus, *options)
    assert not reasons and {key: equal(cuts[key], audio[name]) for key, name in names.items()} == dict.fromkeys(names, True)
    data = corpus.parent / "data"
    prepare_lang(["--data-dir", str(data)])
    prepare_noise(["--data-dir", str(data), *options])
    assert len(list(CutSet.from_file(data / "cuts/musan.jsonl.gz"))) == len(HOSTILE) - 1  # one has no ending of audio
    assert batches(data, *options) == {"train": 3 * len(HOSTILE), "test": len(HOSTILE), "skipped": 0}
    compute_features(["--data-dir", str(data), "features.type=precomputed", *options])
    assert batches(data, "features.type=precomputed", *options)["skipped"] == 0
    for name, expected in audio.items():
        streamed = np.concatenate(list(open_checked(corpus / name, "first").pieces(RATE)), 1)[0]
        assert np.allclose(streamed, expected, atol=1e-6)
    assert not list(here.iterdir()) and not list(corpus.rglob("PWNED")) and "PWNED:" not in capfd.readouterr().err


def test_a_shell_is_started_in_one_place() -> None:
    found = set()
    for path in [p for folder in ("local", "model") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            shell = isinstance(node, ast.keyword) and node.arg == "shell"
            shell |= isinstance(node, ast.Constant) and node.value in ("sh", "bash", "/bin/sh", "/bin/bash")
            if shell or name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"):
                found.add(str(path.relative_to(ROOT)))
    assert found == {"local/corpus/commands.py"}


def source(kind: str, text: str, name: str = "x") -> Recording:
    return Recording(name, [AudioSource(kind, [0], text)], RATE, RATE, 1.0)


def of_kaldi(corpus: Path, wav: Path) -> None:
    (corpus / "train").mkdir()
    (corpus / "train" / "wav.scp").write_text(f"good {wav}\nx touch PWNED; cat {wav} |\n")
    (corpus / "train" / "text").write_text(f"good {TEXT}\nx {TEXT}\n")


def of_lhotse(kind: str, text: str) -> Callable[[Path, Path], None]:
    def make(corpus: Path, wav: Path) -> None:
        lhotse_manifests(corpus, [recording(wav), source(kind, text.format(wav))], [segment("good"), segment("x")])

    return make


def of_cuts(corpus: Path, wav: Path) -> None:
    recordings = [recording(wav), source("command", f"touch PWNED; cat {wav}")]
    cuts = [MonoCut(r.id, 0.0, 1.0, 0, [segment(r.id)], recording=r) for r in recordings]
    CutSet.from_cuts(cuts).to_file(corpus / "cuts_train.jsonl.gz")


def of_reverberation(corpus: Path, wav: Path) -> None:
    """Write a recording whose impulse response is what a command writes."""
    response = source("command", f"touch PWNED; cat {wav}")
    reverberated = Recording(
        "x", recording(wav).sources, RATE, RATE, 1.0, transforms=[ReverbWithImpulseResponse(response.to_dict())]
    )
    lhotse_manifests(corpus, [recording(wav), reverberated], [segment("good"), segment("x")])


FORMS = {
    "kaldi": of_kaldi,
    "command": of_lhotse("command", "touch PWNED; cat {}"),
    "url": of_lhotse("url", "https://there/x.wav"),
    "pipe as url": of_lhotse("url", "pipe:touch PWNED; cat {}"),
    "file as url": of_lhotse("url", "file://there/{}"),
    "shar": of_lhotse("shar", "pipe:touch PWNED; cat {}#0+32044"),
    "shar from a store": of_lhotse("shar", "s3://there/a.tar#0+32044"),
    "cuts": of_cuts,
    "reverberation": of_reverberation,
}


@pytest.fixture
def network(corpus: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give lhotse a library of object stores: whatever is fetched is good.wav, and PWNED shows it. Return good.wav."""
    usual = lhotse.serialization.get_current_io_backend()

    class Store:
        def open(self, name: str | Path, mode: str) -> Any:
            if not str(name).startswith(("https:", "s3:", "file:", "pipe:")):
                return usual.open(name, mode)
            (here / "PWNED").touch()
            return io.BytesIO((corpus / "good.wav").read_bytes())

    monkeypatch.setattr(lhotse.serialization, "get_current_io_backend", Store)
    write(corpus / "good.wav", 1)
    return corpus / "good.wav"


@pytest.mark.parametrize("form", FORMS)
def test_commands_and_urls_are_left_out_with_a_line(
    corpus: Path, here: Path, network: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    FORMS[form](corpus, network)
    cuts, reasons = prepare(corpus)
    assert not (here / "PWNED").exists() and list(cuts) == ["good"] and list(reasons) == ["x"]
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if "options.commands" in line]
    if form == "reverberation":  # no store replaces this one, allowed or not
        assert "command" in reasons["x"] and not lines
        return
    assert "options.commands" in reasons["x"]
    assert (
        len(lines) == 1 and " 1 " in lines[0] and "x, " in lines[0] and "egs/custom" in lines[0] and "dropped.tsv" in lines[0]
    )


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("shar", "shar from a store", "reverberation")])
def test_with_the_key_they_are_used(corpus: Path, here: Path, network: Path, form: str) -> None:
    FORMS[form](corpus, network)
    cuts, reasons = prepare(corpus, yaml=allow_commands(corpus))
    assert (here / "PWNED").exists() and not reasons and equal(cuts["x"], loaded(cuts["good"]))
    data = corpus.parent / "data"
    prepare_lang(["--data-dir", str(data)])
    (here / "PWNED").unlink()
    assert batches(data) == {"train": 6, "test": 2, "skipped": 0} and (here / "PWNED").exists()


def test_shards_that_commands_fetch_are_refused(corpus: Path, here: Path) -> None:
    (corpus / "train.shar").write_text("pipe:touch PWNED; false cuts.{000000..000003}.jsonl.gz\ns3://a/cuts.000000.jsonl.gz\n")
    with pytest.raises(SystemExit):
        prepare(corpus)
    assert not list(here.iterdir())
    reasons = dropped(corpus.parent / "data" / "manifests")
    assert len(reasons) == 5 and all("options.commands" in reason for reason in reasons.values())
    with pytest.raises(BadAudio, match=r"options\.commands"):
        ShardStore(here / "new", 1.0).local("s3://bucket/recording.000000.tar")


@pytest.mark.parametrize("allowed", [False, True])
def test_manifests_that_were_written_by_hand_are_checked_as_well(
    corpus: Path, here: Path, network: Path, allowed: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Features, training and decoding ask the key in data/<corpus>/corpus.yaml."""
    table(corpus, "good.wav")
    prepare(corpus, **({"yaml": allow_commands(corpus)} if allowed else {}))
    data = corpus.parent / "data"
    assert load_corpus(data / "corpus.yaml").commands == allowed
    prepare_lang(["--data-dir", str(data)])
    (cut,) = CutSet.from_file(data / "cuts/train.jsonl.gz")
    for changed in (source("command", f"touch PWNED; cat {network}", "good"), source("url", "https://there/x.wav", "good")):
        cut.recording = changed
        CutSet.from_cuts([cut]).to_file(data / "cuts/train.jsonl.gz")
        assert batches(data) == ({"train": 3, "test": 1, "skipped": 0} if allowed else {"train": 0, "test": 0, "skipped": 4})
        assert (here / "PWNED").exists() == allowed
        (here / "PWNED").unlink(missing_ok=True)
        if allowed:
            compute_features(["--data-dir", str(data), "features.type=precomputed", "--nj", "1"])
        else:
            with pytest.raises(SystemExit):
                compute_features(["--data-dir", str(data), "features.type=precomputed", "--nj", "1"])
            assert "options.commands" in capfd.readouterr().err
        assert (here / "PWNED").exists() == allowed
        (here / "PWNED").unlink(missing_ok=True)


def test_stored_features_are_only_those_of_this_recipe(corpus: Path, here: Path, network: Path) -> None:
    """Other storages of lhotse are refused: `lilcom_url` runs what follows `pipe:`."""
    table(corpus, "good.wav")
    prepare(corpus)
    data = corpus.parent / "data"
    prepare_lang(["--data-dir", str(data)])
    (cut,) = CutSet.from_file(data / "cuts/train.jsonl.gz")
    cut.features = Features("fbank", 98, 80, 0.01, RATE, 0.0, 1.0, "lilcom_url", "pipe:touch PWNED;", "echo x", "good", 0)
    (data / "features").mkdir()
    CutSet.from_cuts([cut]).to_file(data / "features/train.jsonl.gz")
    with pytest.raises(UserError, match=r"features/train\.jsonl\.gz:1: .*lilcom_url"):
        batches(data, "features.type=precomputed", "augment.speed_perturb=false")
    assert not (here / "PWNED").exists()


@pytest.mark.parametrize("kind", ["command", "url"])
def test_noise_is_files(corpus: Path, here: Path, network: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = {"command": f"touch PWNED; cat {network}", "url": "https://there/noise.wav"}[kind]
    write(corpus / "noise.wav", 3, 7.0)
    recordings = [recording(corpus / "noise.wav", 7.0), Recording("x", [AudioSource(kind, [0], text)], RATE, 7 * RATE, 7.0)]
    CutSet.from_cuts(MonoCut(r.id, 0.0, 7.0, 0, recording=r) for r in recordings).to_file(corpus / "noise.jsonl.gz")
    prepare_noise(["--data-dir", str(corpus.parent / "data"), f"augment.musan={corpus / 'noise.jsonl.gz'}"])
    assert not (here / "PWNED").exists() and kind in capfd.readouterr().err
    (cut,) = CutSet.from_file(corpus.parent / "data/cuts/musan.jsonl.gz")
    cut.recording = recordings[1]  # by hand, after preparation
    with pytest.raises(BadAudio, match=kind):
        load_audio(cut)
    assert not (here / "PWNED").exists()


def test_the_key_must_be_true_or_false(tmp_path: Path) -> None:
    for wrong in ("'true'", "1", "[]"):
        (tmp_path / "corpus.yaml").write_text(
            f"name: a\nsource: custom\ntrain: [train]\ndev: []\ntest: []\noptions: {{commands: {wrong}}}\n"
        )
        with pytest.raises(UserError, match=r"corpus\.yaml.*options\.commands"):
            load_corpus(tmp_path / "corpus.yaml")
    assert not load_corpus(ROOT / "egs/custom/corpus.yaml").commands


def alive(pid: int) -> bool:
    """Return whether a process runs (not as a zombie)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("command", "limit"),
    [
        ("sleep 1000 & echo $! > pid; wait", "1.5 s"),
        ("(trap '' TERM INT HUP; sleep 1000 & echo $! > pid; wait); true", "1.5 s"),
        ("sleep 1000 & echo $! > pid; echo done", "1.5 s"),  # it ends, but what it started holds its output
        ("sleep 1000 >/dev/null 2>&1 & echo $! > pid; exec yes", "1000000 bytes"),
        ("sleep 1000 >/dev/null 2>&1 & echo $! > pid; yes >&2", "1.5 s"),
    ],
)
def test_a_command_is_stopped_with_all_that_it_started(here: Path, command: str, limit: str) -> None:
    began = time.monotonic()
    with pytest.raises(CommandFailed, match=limit):
        run(command, out := io.BytesIO(), seconds=1.5, most=1_000_000)
    assert time.monotonic() - began < 10 and out.tell() <= 1_000_000
    wait_for(lambda: not alive(int((here / "pid").read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells children of their parent's end")
@pytest.mark.parametrize("command", ["sleep 1000 & echo $! > pid; wait", "(sleep 1000 & echo $! > pid; wait) | cat"])
def test_a_command_dies_with_a_process_that_is_killed(here: Path, command: str) -> None:
    code = f"import io; from local.corpus.commands import run; run({command!r}, io.BytesIO())"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: (here / "pid").exists() and (here / "pid").read_text().strip() != "")
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not alive(int((here / "pid").read_text())))


def wait_for(what: Callable[[], bool]) -> None:
    for _ in range(600):
        if what():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 30 s")


def test_a_command_gives_its_output_and_its_last_message(here: Path) -> None:
    run("cat; printf abc; printf note >&2; sleep 0.1; printf def", out := io.BytesIO(), seconds=30)
    run(["printf", "%s", "$(touch PWNED)"], out)  # no shell
    assert out.getvalue() == b"abcdef$(touch PWNED)" and not list(here.iterdir())
    for command, message in (("echo a >&2; echo why >&2; exit 7", "exit 7: why"), (["no-such-program"], "no-such-program")):
        with pytest.raises(CommandFailed, match=message):
            run(command, io.BytesIO())


def test_endless_commands_are_named(corpus: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In preparation and, as files may change, whenever the audio is read."""
    monkeypatch.setattr(commands, "SECONDS", 1.0)
    monkeypatch.setattr(commands, "MOST_BYTES", 10_000_000)
    write(corpus / "good.wav", 1)
    (corpus / "train").mkdir()
    endless = "if [ -e slow ]; then sleep 100000; fi; cat"
    lines = [f"good {corpus}/good.wav", "sleeps sleep 100000 |", "yes yes |", f"later {endless} {corpus}/good.wav |"]
    (corpus / "train" / "wav.scp").write_text("\n".join(lines) + "\n")
    (corpus / "train" / "text").write_text("".join(f"{line.split()[0]} {TEXT}\n" for line in lines))
    cuts, reasons = prepare(corpus, yaml=allow_commands(corpus))
    assert set(cuts) == {"good", "later"} and set(reasons) == {"sleeps", "yes"}
    assert "sleep 100000" in reasons["sleeps"] and "1 s" in reasons["sleeps"]
    assert "yes" in reasons["yes"] and "10000000 bytes" in reasons["yes"]
    data = corpus.parent / "data"
    prepare_lang(["--data-dir", str(data)])
    (here / "slow").touch()
    began = time.monotonic()
    assert batches(data) == {"train": 3, "test": 1, "skipped": 4} and time.monotonic() - began < 60


@pytest.mark.parametrize(
    "numbers", ["{0..99999999999}", "{000000..999999}", "{0..%s}" % ("9" * 5000), "{5..3}", "{0..99999}.{0..9}.{0..99999}"]
)
def test_a_list_of_too_many_shards_is_named(tmp_path: Path, numbers: str) -> None:
    listed = tmp_path / "train.shar"
    listed.write_text(f"cuts.000000.jsonl.gz\ncuts.{numbers}.jsonl.gz\n")
    with pytest.raises(UserError, match=r"train\.shar:2: \{|cuts\.<number>"):
        shards_of(listed)
    listed.write_text("cuts.{000007..000009}.jsonl.gz\n")
    assert [Path(cuts).name for cuts, _ in shards_of(listed)] == [f"cuts.00000{n}.jsonl.gz" for n in (7, 8, 9)]
    assert os.path.getsize(listed) < 100
