"""Stage 3 of prepare.sh, if no configuration is given: choose one that fits the speech and this machine.

    .venv/bin/python -m local.choose_conf --data-dir data/my_audio [key.sub=value ...]

Reads the training cuts: hours of speech, different characters and words. Writes data/<corpus>/conf.yaml, which includes a
file of conf/preset/ and sets a few keys, with the reasons as comments. It prints the choice. A file that was edited stays as
it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from local.common.atomic import write_text
from local.common.cli import choose_device, make_parser, program
from local.common.locks import writes
from local.common.processes import cores
from local.common.scripts import SYLLABLE, mostly
from local.common.text_files import read_lines
from local.config import load_config
from local.config.presets import Choice, Machine, Speech, as_yaml, choose, expected_seconds
from local.corpus.corpus_yaml import load_corpus, needs_train
from local.corpus.manifest_lines import read_manifest

from lhotse.cut import Cut

MARK = "# Edit this file as you like: it is not written again once it differs from the check sum"


def measure(data_dir: Path, parts: Sequence[str]) -> Speech:
    """Return what the training cuts hold."""
    seconds, characters, words, texts = 0.0, set[str](), set[str](), list[str]()
    for part in parts:
        path = data_dir / "cuts" / f"{part}.jsonl.gz"
        for cut in read_manifest(path, Cut, "stage 2 (cuts) of prepare.sh"):  # type: ignore[type-abstract]
            seconds += cut.duration
            text = " ".join(segment.text or "" for segment in cut.supervisions)
            characters.update(text)
            words.update(text.split())
            texts.append(text)
    different = sum(not c.isspace() for c in characters)
    return Speech(seconds / 3600, different, len(words), mostly(texts, SYLLABLE))


def this_machine() -> Machine:
    """Return the cores and the GPU of this machine."""
    gpu = None
    if choose_device().type == "cuda":
        import torch

        gpu = torch.cuda.get_device_properties(0).total_memory / 2**30
    return Machine(cores(), gpu)


def signed(text: str) -> str:
    """Return a configuration with a last line that has its check sum."""
    return f"{text}{MARK} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def is_edited(path: Path) -> bool:
    """Return whether a file differs from what `signed` gave it."""
    lines = read_lines(path)
    text = "".join(f"{line}\n" for line in lines[:-1])
    return not lines or f"{text}{lines[-1]}\n" != signed(text)


def duration(seconds: float) -> str:
    """Return a time in words: "40 seconds", "25 minutes", "7 hours", "4 days"."""
    for unit, size, limit in (("seconds", 1, 100), ("minutes", 60, 100 * 60), ("hours", 3600, 48 * 3600)):
        if seconds < limit:
            return f"{max(2, round(seconds / size))} {unit}"
    return f"{round(seconds / 86400)} days"


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Write and print the choice."""
    args = make_parser(__doc__, data_dir=True).parse_args(argv)
    writes(args.data_dir, wait=True)
    corpus_yaml = args.data_dir / "corpus.yaml"
    corpus = needs_train(load_corpus(corpus_yaml, load_config(args.conf, args.overrides).data), corpus_yaml)
    speech = measure(args.data_dir, corpus.train)
    machine, path = this_machine(), args.data_dir / "conf.yaml"
    choice = choose(speech, machine)
    about = (
        f"Chosen for {speech.hours:.2f} h of training speech, {speech.characters} different characters, "
        f"{speech.words} different words, {machine}."
    )
    if path.exists() and is_edited(path):
        print(f"{path} was edited and stays as it is; without it the choice would be:\n{as_yaml(choice, about)}", end="")
        return
    text = as_yaml(choice, about)
    write_text(path, signed(text))
    report(path, text, choice, speech.hours, machine, args.overrides)


def report(path: Path, text: str, choice: Choice, hours: float, machine: Machine, overrides: Sequence[str]) -> None:
    """Print the choice, how long the training will take, and how to change it."""
    cfg = load_config(path, overrides)
    print(f"{path}:\n" + "".join(f"  {line}\n" for line in text.splitlines()), end="")
    time = duration(expected_seconds(hours, cfg, choice.preset, machine))
    epochs = f"{cfg.train.num_epochs} epoch{'s' if cfg.train.num_epochs > 1 else ''}"
    print(f"training for {epochs} will take about {time}: an estimate from the times of other machines")
    keys = ", ".join(choice.keys)
    print(f"To change it, edit {path}, give {keys} as key=value, or name a configuration of your own by --conf")


if __name__ == "__main__":
    main()
