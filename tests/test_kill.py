"""Training that is killed or runs out of disk resumes as if it had never stopped; the program itself runs here."""

from __future__ import annotations

import os
import random
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local import train as train_program
from local.artifacts.checkpoint import checkpoints
from local.config import load_config
from local.data.datamodule import AsrDataModule
from local.data.feature_store import Float16ArchiveReader
from local.data.tokenizer import Tokenizer
from tests.killed_run import SMALL, Run, assert_as_if_whole, last_step, of_group, prepared_corpus

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
SAVE_EVERY, VALID_EVERY, EPOCHS = 2, 7, 4
OPTIONS = [
    *(*SMALL, "data.num_workers=1", "train.average_period=1", "train.log_every=1"),
    *(f"train.num_epochs={EPOCHS}", f"train.save_every={SAVE_EVERY}", f"train.valid_every={VALID_EVERY}"),
]
SEED = 20261123  # of the moments at which training is killed


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the experiment of an uninterrupted training."""
    exp_dir = tmp_path_factory.mktemp("whole")
    Run(data, exp_dir, OPTIONS).to_the_end()
    return exp_dir


def unfinished(exp_dir: Path) -> list[Path]:
    return list((exp_dir / "checkpoints").glob(".tmp-*"))


def in_validation(exp_dir: Path) -> bool:
    """Return whether the last step is followed by a validation that is not done yet."""
    done = last_step(exp_dir / "train.csv")
    return done > 0 and done % VALID_EVERY == 0 and last_step(exp_dir / "valid.csv") < done


def kill_at(run: Run, moment: str, rng: random.Random) -> str:
    """Wait for the moment, kill, and return a description."""
    run.until_training()
    assert unfinished(run.exp_dir) == [] or last_step(run.exp_dir / "train.csv") > 0
    group = rng.random() < 0.5
    begun = last_step(run.exp_dir / "train.csv")
    if moment == "step":
        target, delay = begun + rng.randint(2, 7), rng.uniform(0, 0.05)
        run.until(lambda: last_step(run.exp_dir / "train.csv") >= target)
        time.sleep(delay)
        run.kill(group)
    else:
        if moment == "checkpoint":  # the first, second or third of this run
            later = begun + SAVE_EVERY * rng.choice([0, 1, 2])
            run.until(lambda: last_step(run.exp_dir / "train.csv") >= later)
        inside = {"checkpoint": lambda: bool(unfinished(run.exp_dir)), "validation": lambda: in_validation(run.exp_dir)}
        run.kill_within(inside[moment], group)
    return f"{moment} (from {begun} to {last_step(run.exp_dir / 'train.csv')}, {'group' if group else 'trainer alone'})"


def test_killed_ten_times_equals_uninterrupted(data: Path, whole: Path, tmp_path: Path) -> None:
    """Kill the trainer, alone or with its workers, in steps, checkpoints and validations; finish with more workers."""
    rng = random.Random(SEED)
    moments = ["step"] * 4 + ["checkpoint"] * 3 + ["validation"] * 3
    rng.shuffle(moments)
    groups, note = [], f"seed {SEED}"
    for moment in moments:
        run = Run(data, tmp_path, OPTIONS)
        groups.append(run.process.pid)
        try:
            note += f"; {kill_at(run, moment, rng)}"
        finally:
            run.clear()
    print(note)  # pytest shows it if a check below fails
    run = Run(data, tmp_path, [*OPTIONS, "data.num_workers=2"])
    run.to_the_end()
    assert "resuming from" in run.output(), note
    assert_as_if_whole(tmp_path, whole, EPOCHS, note)
    assert unfinished(tmp_path) == [], note
    give_up = time.monotonic() + 15  # a worker checks its trainer every few seconds
    while any(map(of_group, groups)) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert [of_group(g) for g in groups] == [[]] * len(groups), f"workers outlive their trainer; {note}"


def assert_two_kills_change_nothing(data: Path, folder: Path, options: list[str], epochs: int) -> None:
    """Train twice, the second time killed in a step and in a checkpoint and finished with two workers, and compare."""
    rng = random.Random(SEED)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    Run(data, folder / "whole", options).to_the_end()
    for moment in ("step", "checkpoint"):
        run = Run(data, folder / "killed", options)
        try:
            note = kill_at(run, moment, rng)
        finally:
            run.clear()
    run = Run(data, folder / "killed", [*options, "data.num_workers=2"])
    run.to_the_end()
    assert re.search(r"resuming from \S+: [1-9]\d* ", run.output()), note
    assert_as_if_whole(folder / "killed", folder / "whole", epochs, note)


def test_killed_with_two_copies_of_each_utterance(data: Path, tmp_path: Path) -> None:
    """The copies' masks, their common warping and the CTC head come back as they were."""
    epochs = 2
    copies = ["loss.ctc_scale=0.2", "loss.cr_scale=0.2", "train.max_duration=24", f"train.num_epochs={epochs}"]
    options = [*OPTIONS, *copies, "augment.time_warp_factor=20"]
    assert_two_kills_change_nothing(data, tmp_path, options, epochs)


def test_killed_with_two_corpora(data: Path, tmp_path: Path) -> None:
    """The batches that are left of an epoch, and the places in the second corpus, come back as they were."""
    epochs = 2
    (tmp_path / "more").mkdir()
    (tmp_path / "mine").symlink_to(prepared_corpus(tmp_path / "more"))
    options = [*OPTIONS, f"data.mix={{{data}: 0.7, {tmp_path}/mine: 0.3}}", f"train.num_epochs={epochs}"]
    assert_two_kills_change_nothing(data, tmp_path, options, epochs)


def train_here(data: Path, exp_dir: Path, *overrides: str) -> None:
    """Run the program in this process."""
    arguments = ["--data-dir", str(data), "--exp-dir", str(exp_dir), *OPTIONS, "data.num_workers=0", *overrides]
    train_program.main(arguments)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Leave `size` bytes on the file system of `folder`."""
    filler = folder / "filler"
    with filler.open("wb") as f:
        while (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize) > size:
            f.write(bytes(min(free - size, 1 << 20)))
            f.flush()
    yield
    filler.unlink()


@contextmanager
def small_files(folder: Path, size: int) -> Iterator[None]:
    """Limit the files of this process to `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Callable[[Path, int], Any], str]]:
    """Return an experiment's folder, a context that makes it too small for a checkpoint, and the reason in the error."""
    exp_dir = tmp_path / "exp"
    exp_dir.mkdir()
    if request.param == "limit":
        yield exp_dir, small_files, "File too large"
        return
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(exp_dir)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({made.stderr.strip().splitlines()[-1:]}); the limit does the same")
    yield exp_dir, small_disk, "No space left on device"
    subprocess.run(["umount", "-l", str(exp_dir)], check=True)


def test_a_full_disk_ends_training_in_one_line_and_loses_nothing(
    data: Path,
    whole: Path,
    disk: tuple[Path, Callable[[Path, int], Any], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    exp_dir, too_small, reason = disk
    keep = "train.keep_last=2"
    train_here(data, exp_dir, keep, f"train.max_steps={SAVE_EVERY}")
    first = exp_dir / "checkpoints" / f"step-{SAVE_EVERY}.pt"
    before = first.read_bytes()
    capsys.readouterr()
    with too_small(exp_dir, len(before) // 2):
        with pytest.raises(SystemExit) as ended:
            train_here(data, exp_dir, keep)
        said = capsys.readouterr().err
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert ended.value.code == 1 and len(errors) == 1 and "Traceback" not in said, said
        assert f"step-{2 * SAVE_EVERY}.pt" in errors[0] and reason in errors[0]
        assert f"takes {len(before) / 1e6:.1f} MB" in errors[0] and "MB are free" in errors[0]
        assert unfinished(exp_dir) == [] and first.read_bytes() == before
        assert [path for _, path in checkpoints(exp_dir / "checkpoints", "step")] == [first]
    train_here(data, exp_dir, keep)
    assert_as_if_whole(exp_dir, whole, EPOCHS, reason)


def test_a_position_is_found_without_reading_earlier_batches(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither stored features nor audio of skipped batches is opened."""
    read: list[str] = []
    plain_read = Float16ArchiveReader.read

    def record(self: Float16ArchiveReader, key: str, *args: Any, **kwargs: Any) -> Any:
        read.append(key)
        return plain_read(self, key, *args, **kwargs)

    monkeypatch.setattr(Float16ArchiveReader, "read", record)
    tokenizer = Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model")
    for kind in ("precomputed", "on_the_fly"):
        dm = AsrDataModule(load_config(None, [*OPTIONS, "data.num_workers=0", f"features.type={kind}"]), data, tokenizer)
        batches = [batch.ids for batch in dm.train_dataloader(2)]
        last = {name.partition("_sp")[0] for name in batches[-1]}
        audio = sorted((data.parent / "audio" / "tr").rglob("*.flac"))
        away = [] if kind == "precomputed" else [path for path in audio if path.stem not in last]
        assert len(batches) > 5 and (kind == "precomputed" or len(away) > 10)
        read.clear()
        try:
            for path in away:
                path.rename(path.with_suffix(".away"))
            loader = dm.train_dataloader(2, skip_batches=len(batches) - 1)
            assert [batch.ids for batch in loader] == batches[-1:] and loader.skipped == 0
        finally:
            for path in away:
                path.with_suffix(".away").rename(path)
        assert len(read) == (len(batches[-1]) if kind == "precomputed" else 0)
