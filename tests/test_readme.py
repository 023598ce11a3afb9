"""README.md and the other documents: their commands work as they stand, their keys, files and links exist."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from local.artifacts.checkpoint import load_file, tokenizer_of
from local.common.errors import UserError
from local.config import load_config, to_dict
from local.config.methods import METHODS
from tests.conftest import ROOT
from tests.speech_tree import make_part, write_noise

import pytest
import torch

DOCUMENTS = [
    path
    for pattern in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "docs/*.md", "egs/*/*.md")
    for path in sorted(ROOT.glob(pattern))
]
SECTIONS = "model|gradient|loss|optim|train|features|augment|data|lang|lm|average|decode|tune|score|ablation"
FILES = (".csv", ".json", ".md", ".onnx", ".pt", ".py", ".shar", ".tsv", ".yaml")  # `lm.pt` is a file, not a key
RENAMED = {"data.min_duration", "data.max_duration"}  # docs/configuration.md says what they are called now
OTHER_PROGRAMS = ("git", "cd", "export", "python3 -m venv", ".venv/bin/python -m pip")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[str]:
    """Return the fenced blocks of a document that a reader would paste into a shell."""
    return re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    """One command per line of these blocks; lines that end with a backslash are joined, comments are removed."""
    lines = [line for block in blocks(path) for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(line, comments=True) for line in lines]
    found = []
    for words in split:
        while "&&" in words:
            found.append(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        found.append(words)
    return [shlex.join(words) for words in found if words]


COMMANDS = list(dict.fromkeys((name_of(path), command) for path in DOCUMENTS for command in commands(path)))


class Parsed(BaseException):
    """Raised in place of a program's work, with its arguments."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.arguments = args


def parsed(monkeypatch: pytest.MonkeyPatch, module: str, words: list[str]) -> argparse.Namespace:
    """Return what a program's own parser makes of these words; the program does nothing else."""

    def stop_after(parse: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
        def stop(parser: argparse.ArgumentParser, args: list[str] | None = None, namespace: None = None) -> argparse.Namespace:
            raise Parsed(parse(parser, args, namespace))

        return stop

    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(argparse.ArgumentParser, name, stop_after(getattr(argparse.ArgumentParser, name)))
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(Parsed) as caught:
        importlib.import_module(module).main()
    return caught.value.arguments


def check_python(monkeypatch: pytest.MonkeyPatch, module: str, words: list[str]) -> None:
    assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file(), module
    arguments = vars(parsed(monkeypatch, module, words))
    for value in arguments.values():
        if str(value).startswith(("egs/", "conf/")):
            assert (ROOT / str(value)).is_file(), value
    overrides = [*arguments.get("overrides", []), *(word for word in arguments.get("sets") or [] if "=" in word)]
    load_config(ROOT / arguments["conf"] if arguments.get("conf") else None, overrides)


def default_conf(corpus: str, experiment: str) -> Path:
    """Return the file that run.sh takes without --conf."""
    folder = ROOT / "egs" / corpus / "conf"
    paths = (folder / f"{experiment}.yaml", folder / f"{corpus}.yaml", ROOT / "conf" / "base.yaml")
    return next(path for path in paths if path.is_file())


def help_of(script: str) -> str:
    return subprocess.run([f"./{script}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def check_shell(script: str, words: list[str]) -> None:
    """Check options, stages and commands of run.sh and prepare.sh against --help, keys against the configuration."""
    text = help_of(script)
    options = dict(re.findall(r"^  --([a-z-]+)( [A-Z:]+)?", text, flags=re.MULTILINE))
    stages = dict(re.findall(r"^  (\d)  (\w+)", text, flags=re.MULTILINE))
    other = re.findall(r"^  ([a-z]+) +-> ", text, flags=re.MULTILINE)
    given: dict[str, str] = {}
    overrides = []
    rest = words[1:] if words and words[0] in other else list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            name = word[2:]
            assert name in options, f"{script} has no option --{name}"
            given[name] = rest.pop(0) if options[name] else ""
        else:
            assert re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+=.*", word), f"{script}: {word}"
            overrides.append(word)
    for name in {"stage", "stop-stage"} & set(given):
        assert given[name] in {*stages, *stages.values()}, f"{script} has no stage {given[name]}"
    for name in {"nj", "nproc", "nnodes"} & set(given):
        assert given[name].isdecimal()
    for name in {"rdzv", "dask"} & set(given):
        assert re.fullmatch(r"[\w.-]+:\d+", given[name])
    corpus = given.get("corpus", "tiny")
    assert (ROOT / "egs" / corpus / "corpus.yaml").is_file(), corpus
    conf = ROOT / given["conf"] if "conf" in given else default_conf(corpus, Path(given.get("exp-dir", corpus)).name)
    load_config(conf, overrides)


def check(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Fail if a command would not start."""
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # variables of the environment
        words.pop(0)
    script = ROOT / (words[1] if words[0] == "sbatch" else words[0])
    if command.startswith(OTHER_PROGRAMS):
        return
    if words[:2] == [".venv/bin/python", "-m"]:
        check_python(monkeypatch, words[2], words[3:])
        return
    assert script.is_relative_to(ROOT) and script.is_file() and os.access(script, os.X_OK), command
    if words[0] == "sbatch":
        check_shell("run.sh", words[2:])
    elif script.name in ("run.sh", "prepare.sh"):
        check_shell(script.name, words[1:])
    else:
        assert script.name in ("test.sh", "run") and all(word in script.read_text() for word in words[1:2]), command


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_starts_as_it_stands(monkeypatch: pytest.MonkeyPatch, document: str, command: str) -> None:
    check(monkeypatch, command)


@pytest.mark.parametrize(
    "command",
    [
        "./run.sh --stages decode",
        "./run.sh --stage decoding",
        "./run.sh train.num_epoch=3",
        "./run.sh nothing",
        "./run.sh --corpus nothing",
        "./prepare.sh --nproc 2",
        "local/stream.py my.wav",
        "python3 local/wer.py --exp-dir exp/tiny",
        ".venv/bin/python -m local.nothing",
        ".venv/bin/python -m local.wer",
        ".venv/bin/python -m local.stream my.wav --checkpoints exp/tiny/averaged.pt",
        ".venv/bin/python -m local.stream my.wav --method nothing",
        ".venv/bin/python -m local.diagnose --conf egs/tiny/nothing.yaml --data-dir data/tiny --exp-dir exp/tiny",
        ".venv/bin/python -m local.diagnose --data-dir data/tiny --exp-dir exp/tiny nothing.key=3",
    ],
)
def test_a_wrong_command_is_found(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    with pytest.raises((AssertionError, SystemExit, UserError)):
        check(monkeypatch, command)


def test_the_documents_have_commands() -> None:
    documents = {document for document, _ in COMMANDS}
    assert len(COMMANDS) > 40
    assert {"README.md", "docs/decoding.md", "docs/gradients.md", "docs/streaming.md"} <= documents


def in_code(path: Path) -> Iterator[str]:
    """Return the texts in backquotes of a document's prose and tables."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    yield from (re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", text))


def keys(values: dict, prefix: str = "") -> Iterator[str]:
    """All keys of the configuration, sections included, with dots between."""
    for key, value in values.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_keys_and_files_that_are_named_exist(path: Path) -> None:
    known = set(keys(to_dict(load_config()))) | RENAMED
    for code in in_code(path):
        if re.fullmatch(rf"({SECTIONS})\.[a-z_.]+(=.*)?", code) and not code.endswith(FILES):
            assert code.partition("=")[0] in known, f"{name_of(path)}: {code} is not a key"
        if re.fullmatch(r"(local|model|conf|egs|studies|benchmarks|tests|docs)/[\w./-]*", code):
            assert (ROOT / code).exists() or (path.parent / code).exists(), f"{name_of(path)}: {code} does not exist"


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, fragment = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), f"{name_of(path)}: {link}"
        if fragment:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert fragment in map(anchor, headings), f"{name_of(path)}: {link}"


def test_every_decoding_method_is_explained() -> None:
    rows = [line for line in (ROOT / "docs" / "decoding.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert set(re.findall(r"`(\w+_search\w*)`", "\n".join(rows))) == set(METHODS)


def test_the_stages_are_those_of_the_help() -> None:
    rows = re.findall(r"^\| (\d) `(\w+)`", (ROOT / "docs" / "experiment.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for script, of_script in (("run.sh", rows[:9]), ("prepare.sh", rows[9:])):
        assert re.findall(r"^  (\d)  (\w+)", help_of(script), flags=re.MULTILINE) == of_script


def test_pictures_are_small() -> None:
    pictures = sorted((ROOT / "docs").rglob("*.png"))
    assert pictures and all(path.stat().st_size < 150_000 for path in pictures)


TOY_CONF = """\
model:
  encoder: {num_layers: 3, d_model: 16, rnn_hidden_size: 16, dim_feedforward: 16}
  decoder: {dim: 16}
  joiner: {dim: 16}
lang: {vocab_size: 80}
data: {num_workers: 0, num_buckets: 1}
augment: {speed_perturb: false}
train: {num_epochs: 1, warm_share: 0.3, max_duration: 20.0, average_period: 1, log_every: 1, num_threads: 1}
average: {num: 1}
lm: {train: true, dim: 8, hidden: 8, num_layers: 1, max_epochs: 2}
decode: {methods: [greedy_search], num_threads: 1}
"""


def run_in(folder: Path, words: list[str]) -> str:
    """Run a program in `folder`; its output."""
    result = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    return result.stdout


def write_icefall(averaged: Path, folder: Path) -> None:
    """Write a model in the layout of icefall's repositories."""
    content = load_file(averaged)
    for name in ("exp", "data/lang_bpe_500"):
        (folder / name).mkdir(parents=True)
    torch.save({"model": content["model"]}, folder / "exp" / "pretrained-iter-468000-avg-16.pt")
    (folder / "data" / "lang_bpe_500" / "bpe.model").write_bytes(tokenizer_of(content, averaged).model)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with data/tiny, exp/tiny and the other paths of the documents, all of a toy model that run.sh trained."""
    root = tmp_path_factory.mktemp("readme")
    for part in ("train", "dev", "test"):
        make_part(root / "speech", part)
    conf = root / "egs" / "tiny" / "conf" / "tiny.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(TOY_CONF, encoding="utf-8")
    folders = ["--corpus-dir", root / "speech", "--data-dir", root / "data" / "tiny", "--exp-dir", root / "exp" / "tiny"]
    options = [*folders, "--conf", conf, "--python", sys.executable, "--nj", "1"]
    run_in(ROOT, ["./run.sh", "--corpus", "custom", "--stop-stage", "score", *map(str, options)])
    shutil.copytree(root / "exp" / "tiny", root / "exp" / "clip")
    (root / "my.tsv").write_text("path\ttext\nmy.wav\tONE\n", encoding="utf-8")
    write_icefall(root / "exp" / "tiny" / "averaged.pt", root / "icefall")
    for path in ("my.wav", "data/tiny/audio/test/3001/1/3001-1-0000.flac"):
        write_noise(root / path, 1.0)
    return root


def programs(document: str) -> list[str]:
    """Return the commands of a document that start a program of local/ or studies/ and take seconds."""
    found = [command for name, command in COMMANDS if name == document and re.search(r"-m (local|studies)\.", command)]
    return [command for command in found if "synthesise_tiny" not in command]


@pytest.mark.slow
@pytest.mark.parametrize("document", [name_of(p) for p in DOCUMENTS if p.name != "RESULTS.md" and programs(name_of(p))])
def test_the_programs_of_a_document_run(toy: Path, document: str) -> None:
    for command in programs(document):
        for package in ("onnx", "onnxruntime", "sherpa_onnx") if "-m local.export " in command else ():
            pytest.importorskip(package, reason="needs requirements-export.txt")
        assert run_in(toy, [sys.executable, *shlex.split(command)[1:]]).strip(), command
