"""Hostile files of weights: archives with code, archives that are not what they seem, and tensors that are no weights."""

from __future__ import annotations

import io
import pickle
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local import checkpoint_conf, diagnose
from local.artifacts.averaging import load_for_averaging, make_average
from local.artifacts.checkpoint import load_averaged, load_file, newest_readable, provenance, save_file
from local.artifacts.decoded_sets import write_set
from local.artifacts.language_model import load_lm
from local.artifacts.plain_values import tensor_problem, without_floats
from local.common.errors import UserError
from local.config import load_config, named_files, to_dict
from model.optim import OPTIMIZERS
from tests.artifacts import torchscript_writer
from tests.conftest import ROOT
from tests.test_train import trainer
from tests.toy_experiment import SMALL, save_toy_lm, toy_tokenizer, toy_weights

import pytest
import torch


def refused(path: Path, *words: str) -> str:
    """Return the message of the refusal, which comes at once and names the file."""
    start = time.perf_counter()
    with pytest.raises(UserError) as e:
        load_file(path)
    message = str(e.value)
    assert message.startswith(f"{path}: ") and all(word in message for word in words), message
    assert time.perf_counter() - start < 20
    return message


def test_a_file_with_code_is_refused_before_torch_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old versions of torch run the code of TorchScript although only weights are asked for."""
    path, mark = tmp_path / "averaged.pt", tmp_path / "written"
    torchscript_writer.write(path, mark)
    assert not mark.exists()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch saw the file"))
    refused(path, "code/")
    assert not mark.exists()
    monkeypatch.undo()
    torch.jit.load(str(path))  # what a careless reader would do
    assert mark.exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of `save_file`."""
    path = tmp_path_factory.mktemp("good") / "good.pt"
    save_file({"model": {"w": torch.ones(1000)}, "lr": 0.5}, path)
    assert torch.equal(load_file(path)["model"]["w"], torch.ones(1000))
    return path


def rewrite(source: Path, target: Path, change: Callable[[zipfile.ZipFile, str, bytes], None]) -> None:
    """Copy an archive, each member by `change`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            change(new, info.filename, old.read(info))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "extra",
    [
        "{0}/code/__torch__.py", "{0}/constants.pkl", "{0}/CONSTANTS.PKL", "{0}/attributes.pkl", "{0}/extra/x", "constants.pkl",
        "{0}/data.pkl", "{0}/DATA.PKL", "{0}/data/0", "../evil", "/tmp/evil", "{0}/../evil", "{0}/data/../../evil", "{0}\\evil",
        "{0}/data.pkl.debug_pkl", "other/data.pkl", "{0}/data/x", "{0}/", "{0}/data/\u0661",
    ],
)  # fmt: skip
def test_members_that_no_checkpoint_has(good: Path, tmp_path: Path, extra: str) -> None:
    path = tmp_path / "a.pt"
    shutil.copy(good, path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(extra.format(root), b"x")
    refused(path, "member")


def test_a_compressed_member_is_refused(good: Path, tmp_path: Path) -> None:
    """A bomb: torch stores without compression."""
    path = tmp_path / "a.pt"
    bomb = b"\0" * 100_000_000
    rewrite(good, path, lambda new, name, data: new.writestr(name, data, compress_type=8))
    refused(path, "compressed")
    rewrite(good, path, lambda new, name, data: new.writestr(name, bomb if name.endswith("data/0") else data, 8))
    assert path.stat().st_size < 1_000_000
    refused(path, "compressed")


def test_members_that_overlap(good: Path, tmp_path: Path) -> None:
    """A thousand entries for the same bytes."""
    path = tmp_path / "a.pt"
    content = good.read_bytes()
    with zipfile.ZipFile(good) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        with zipfile.ZipFile(path, "w") as new:
            for info in archive.infolist():
                new.writestr(info.filename, archive.read(info))
            entry = new.getinfo(largest.filename)
            for i in range(1, 1000):
                copy = zipfile.ZipInfo(largest.filename[:-1] + str(i))
                copy.header_offset, copy.CRC, copy.file_size, copy.compress_size = (
                    entry.header_offset,
                    entry.CRC,
                    entry.file_size,
                    entry.compress_size,
                )
                new.filelist.append(copy)
                new.NameToInfo[copy.filename] = copy
            new._didModify = True  # type: ignore[attr-defined]
    assert path.stat().st_size < 100 * len(content)
    refused(path)


@pytest.mark.parametrize("where", ["before", "after", "two archives"])
def test_bytes_around_the_archive(good: Path, tmp_path: Path, where: str) -> None:
    """Readers that differ on where an archive begins would not see the same members."""
    path, content = tmp_path / "a.pt", good.read_bytes()
    junk = b"x" * 100
    path.write_bytes({"before": junk + content, "after": content + junk, "two archives": content + content}[where])
    refused(path)


def test_other_formats(good: Path, tmp_path: Path) -> None:
    """Old pickles, tar files of torch 0.1, numpy's archives, a file of only an end."""
    path = tmp_path / "a.pt"
    content = torch.load(good, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)
    refused(path)
    path.write_bytes(pickle.dumps({"model": {}}))
    refused(path)
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    refused(path)
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    refused(path)


def raw(path: Path, content: Any) -> None:
    """Write what torch writes: `save_file` would make other values of some."""
    torch.save(content, path)


def shared_lists(depth: int = 60) -> Any:
    value: Any = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def nested(depth: int = 200) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("make", [shared_lists, nested, circle])
@pytest.mark.parametrize("key", ["config", "model", "tokens"])
def test_endless_values(tmp_path: Path, make: Callable[[], Any], key: str) -> None:
    """A pickle can name a list twice in a list that it names twice ..."""
    raw(tmp_path / "a.pt", {"model": {}, key: {"x": make()}})
    refused(tmp_path / "a.pt")


class Sub(torch.Tensor):
    pass


def negative() -> torch.Tensor:
    return torch.view_as_complex(torch.ones(2, 2)).conj().imag


ODD = {
    "sparse": lambda: torch.eye(2).to_sparse(),
    "csr": lambda: torch.eye(2).to_sparse_csr(),
    "meta": lambda: torch.empty(2, device="meta"),
    "complex": lambda: torch.ones(2, dtype=torch.complex64),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "float8": lambda: torch.ones(2).to(getattr(torch, "float8_e4m3fn")),  # noqa: B009  # not in torch 1.13
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "subclass": lambda: torch.ones(2).as_subclass(Sub),
    "expanded": lambda: torch.ones(1).expand(10**12),
    "overlapping": lambda: torch.ones(6).as_strided((4, 3), (1, 1)),
    "transposed": lambda: torch.ones(2, 3).t(),
    "negative view": negative,
    "a storage many times": lambda: [torch.ones(1000).view(10, 100)] * 5000,
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_plain_tensor(tmp_path: Path, name: str) -> None:
    """Wherever it is in the file: in the weights, the average, the optimiser."""
    try:
        value = ODD[name]()  # type: ignore[no-untyped-call]
    except (AttributeError, RuntimeError, NotImplementedError) as e:
        pytest.skip(f"this torch has no such tensor: {e}")
    if isinstance(value, torch.Tensor):
        assert tensor_problem(value) is not None
    for i, content in enumerate(({"model": {"w": value}}, {"model": {}, "optimizer": {"state": {0: {"exp_avg": value}}}})):
        path = tmp_path / f"{i}.pt"
        try:
            raw(path, content)
        except Exception as e:  # of many types
            pytest.skip(f"torch does not save such a tensor: {e}")
        refused(path)


def test_tensors_that_are_plain_in_any_type(tmp_path: Path) -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
    state = {str(kind): torch.ones(3, 2).to(kind) for kind in kinds}
    state |= {"one": torch.tensor(1.0), "none": torch.zeros(0, 3), "parameter": torch.nn.Parameter(torch.ones(2))}
    whole = torch.randn(10)
    state |= {"first": whole[:5], "second": whole[5:], "again": whole[5:]}
    save_file({"model": OrderedDict(state)}, tmp_path / "a.pt")
    read = load_file(tmp_path / "a.pt")["model"]
    assert all(torch.equal(read[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    "state", [{"w": 1.0}, {"w": [1.0]}, {1: torch.ones(1)}, {("a", "b"): torch.ones(1)}, {None: torch.ones(1)}]
)
def test_weights_are_named_tensors(tmp_path: Path, state: dict[Any, Any]) -> None:
    raw(tmp_path / "a.pt", {"model": state})
    refused(tmp_path / "a.pt")


def with_pickle(good: Path, path: Path, change: Callable[[bytes], bytes]) -> None:
    """Copy a good file with another pickle."""
    rewrite(good, path, lambda new, name, data: new.writestr(name, change(data) if name.endswith("data.pkl") else data))


def test_a_key_of_tuples_in_tuples(good: Path, tmp_path: Path) -> None:
    """The hash of a pair of pairs of pairs ... is computed anew for each: that of 60 levels never ends."""
    pairs = b")q\0" + b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    for end in (b"Ns.", b"(h\x3cNu."):  # a key alone, and as one of several; h<: the last pair
        start = b"\x80\x02}" if end == b"Ns." else b"\x80\x02" + pairs + b"0}"
        with_pickle(good, tmp_path / "a.pt", lambda _, start=start, end=end: start + (pairs if end == b"Ns." else b"") + end)  # type: ignore[misc]
        refused(tmp_path / "a.pt", "key")
    with_pickle(good, tmp_path / "a.pt", lambda _: b"\x80\x04" + pairs + b"0\x8f(h\x3c\x90.")
    refused(tmp_path / "a.pt")


def test_more_numbers_than_the_member_has(good: Path, tmp_path: Path) -> None:
    """Torch believes the pickle, and reads what lies behind the numbers in memory."""

    def change(data: bytes) -> bytes:
        assert data.count(b"M\xe8\x03") >= 2  # 1000 numbers, and 1000 rows
        return data.replace(b"M\xe8\x03", b"J\x00\xca\x9a\x3b")

    with_pickle(good, tmp_path / "a.pt", change)
    refused(tmp_path / "a.pt", "data/0")
    with_pickle(good, tmp_path / "a.pt", lambda data: data.replace(b"FloatStorage", b"DoubleStorage"))
    refused(tmp_path / "a.pt", "data/0")


@pytest.mark.parametrize(
    "name", ["torch\nFloatStorage", "builtins\neval", "torch\ndevice", "torch._utils\n_rebuild_sparse_tensor"]
)
def test_a_pickle_calls_nothing_else(good: Path, tmp_path: Path, name: str) -> None:
    """FloatStorage(10**12) would take 4 TB."""
    call = b"\x80\x02c" + name.encode() + b"\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R."
    with_pickle(good, tmp_path / "a.pt", lambda _: call)
    refused(tmp_path / "a.pt")


@pytest.mark.skipif(sys.platform != "linux", reason="macOS reserves memory that is never used")
@pytest.mark.parametrize("size", [1 << 31, 1 << 62])
def test_an_array_of_bytes_that_the_file_does_not_have(good: Path, tmp_path: Path, size: int) -> None:
    """Python takes the memory that a bytearray states before it reads its bytes."""
    with_pickle(good, tmp_path / "a.pt", lambda _: b"\x80\x05\x96" + size.to_bytes(8, "little") + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "a.pt", "neither plain nor tensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make EXP/checkpoints/epoch-1.pt, as averaging, decoding and training need it, and EXP/lm.pt."""
    exp = tmp_path_factory.mktemp("experiment")
    cfg, tokenizer = load_config(None, SMALL), toy_tokenizer()
    weights = toy_weights(cfg, tokenizer, 0)
    average = {"state": {k: v.double() for k, v in weights.items()}, "batches": 4, "period": 1}
    resume = {"optimizer": {}, "schedule": {}, "scaler": {}, "rng": {}, "progress": {"step": 4}}
    save_file(
        {"model": weights, "average": average, **resume, **provenance(cfg, tokenizer)}, exp / "checkpoints" / "epoch-1.pt"
    )
    (exp / "lm").mkdir()
    save_toy_lm(cfg, tokenizer, exp / "lm")
    return exp


READERS: dict[str, Callable[[Path], Any]] = {
    "average": lambda exp: make_average(exp / "checkpoints", load_config(None, ["average.mode=plain"]).average),
    "average of averages": lambda exp: load_for_averaging(exp / "checkpoints" / "epoch-1.pt", running=True),
    "decode, stream, tune": lambda exp: load_averaged(exp / "checkpoints" / "epoch-1.pt"),
    "language model": lambda exp: load_lm(exp / "lm" / "lm.pt", toy_tokenizer()),
}


def changed(experiment: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    exp = tmp_path / "exp"
    shutil.copytree(experiment, exp)
    for path in (exp / "checkpoints" / "epoch-1.pt", exp / "lm" / "lm.pt"):
        content = torch.load(path, weights_only=True)
        change(content)
        raw(path, without_floats(content))  # torch 1.13 cannot read floats
    return exp


def test_every_reader_reads_what_is_whole(experiment: Path, tmp_path: Path) -> None:
    exp = changed(experiment, tmp_path, lambda content: None)
    for read in READERS.values():
        read(exp)
    assert newest_readable(exp / "checkpoints") is not None


def test_a_tensor_with_an_attribute_is_not_plain() -> None:
    value = torch.ones(2)
    value.double = 3  # type: ignore[method-assign,assignment]
    assert tensor_problem(value) is not None and tensor_problem(torch.ones(2)) is None


@pytest.mark.parametrize("name", ["sparse", "meta", "quantized", "expanded", "complex"])
def test_every_reader_refuses_an_odd_weight(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    def change(content: dict[str, Any]) -> None:
        key = list(content["model"])[0]
        content["model"][key] = ODD[name]()  # type: ignore[no-untyped-call]

    exp = changed(experiment, tmp_path, change)
    for read in READERS.values():
        with pytest.raises(UserError, match=r"(epoch-1|lm)\.pt: "):
            read(exp)
    assert newest_readable(exp / "checkpoints") is None  # training and diagnosis: it is skipped with a line
    assert "epoch-1.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "sizes",
    [
        {"d_model": 10**5, "rnn_hidden_size": 10**5},
        {"num_layers": 1000, "dim_feedforward": 10**5},
        {"d_model": 2000, "rnn_hidden_size": 4000, "num_layers": 12},
    ],
)
def test_a_model_larger_than_its_file_is_not_built(experiment: Path, tmp_path: Path, sizes: dict[str, int]) -> None:
    def change(content: dict[str, Any]) -> None:
        content["config"]["model"]["encoder"].update(sizes)

    exp = changed(experiment, tmp_path, change)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*model\.encoder"):
        load_averaged(exp / "checkpoints" / "epoch-1.pt")
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "sizes",
    [
        {"dim": 10**5, "hidden": 10**5}, {"num_layers": 10**6}, {"hidden": 10**18}, {"dim": 2**70}, {"dim": 0}, {"dim": -1},
        {"num_layers": 0}, {"dim": "x"}, {"dim": 1.5}, {"dim": True}, {"dropout": 2.0}, {"dropout": "x"}, {"dropout": 10**400},
        {"other": 1}, {"sos_eos_id": 10**6}, {"sos_eos_id": "x"}, {1: 2}, {"dim": None}, {"hidden": [3]},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_sizes_of_a_language_model(experiment: Path, tmp_path: Path, sizes: dict[Any, Any]) -> None:
    def change(content: dict[str, Any]) -> None:
        if "lm" in content:
            content["lm"].update(sizes)

    exp = changed(experiment, tmp_path, change)
    start = time.perf_counter()
    with pytest.raises(UserError, match=r"lm\.pt: .*('lm'|lm\.hidden)"):
        load_lm(exp / "lm" / "lm.pt", toy_tokenizer())
    assert time.perf_counter() - start < 2


WRONG: dict[str, list[Any]] = {
    "tokens": [3, [3, None]],
    "tokens_hash": [["x"], torch.ones(3)],
    "bpe_model": [torch.ones(3), torch.zeros(2, 2, dtype=torch.uint8)],
    "vocab_size": [10**400],
    "versions": [None],
    "label": ["x" * 10**5],
    "averaged": [[None]],
    "progress": [torch.ones(3), {"step": "x"}],
    "config": [None, {"model": 3}],
    "average": [3, {"state": {"w": None}, "batches": 1, "period": 1}],
}


@pytest.mark.parametrize("key", WRONG)
def test_other_values_of_the_wrong_kind(experiment: Path, tmp_path: Path, key: str) -> None:
    """No reader fails with a traceback, whether it needs the value or not."""
    for i, value in enumerate(WRONG[key]):
        exp = changed(experiment, tmp_path / str(i), lambda content, value=value: content.update({key: value}))  # type: ignore[misc]
        for read in READERS.values():
            try:
                read(exp)
            except UserError as e:
                assert ".pt: " in str(e) or "checkpoints: " in str(e)
        newest_readable(exp / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["average", "decode", "stream", "tune", "diagnose"])
def test_programs_say_it_in_one_line(experiment: Path, tmp_path: Path, module: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"][list(content["model"])[0]] = torch.eye(3).to_sparse()

    exp = changed(experiment, tmp_path, change)
    checkpoint = ["--checkpoint", str(exp / "checkpoints" / "epoch-1.pt")]
    arguments = {
        "average": ["--exp-dir", str(exp)],
        "stream": ["x.wav", *checkpoint],
        "decode": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path)],
        "tune": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path), "tune.blank_penalty=[0,1]"],
        "diagnose": [*checkpoint, "--exp-dir", str(exp), "--data-dir", str(tmp_path)],
    }[module]
    done = subprocess.run([sys.executable, "-m", f"local.{module}", *arguments], capture_output=True, text=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines and "Traceback" not in done.stderr and len(lines) == 1, done.stderr
    assert module == "diagnose" or "epoch-1.pt" in lines[0]


@pytest.mark.parametrize("progress", [3, {}, {"epoch": 1, "batch": 0}, {"epoch": 1, "batch": 0, "step": -1}, {"step": 1.5}])
def test_a_damaged_progress_is_named(experiment: Path, tmp_path: Path, progress: Any) -> None:
    exp = changed(experiment, tmp_path, lambda content: content.update(progress=progress))
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*'progress'"):
        diagnose.load_model(load_config(None, SMALL), toy_tokenizer(), exp, exp / "checkpoints" / "epoch-1.pt")


def test_a_weight_that_is_infinite_in_float32_is_named(experiment: Path, tmp_path: Path) -> None:
    """Weights may be stored as float64; the model's are float32."""

    def change(content: dict[str, Any]) -> None:
        key = next(iter(content["model"]))
        content["model"][key] = content["model"][key].double() + 1e300

    exp = changed(experiment, tmp_path, change)
    with pytest.raises(UserError, match=r"epoch-1\.pt: .*NaN"):
        load_averaged(exp / "checkpoints" / "epoch-1.pt")


def test_files_that_a_checkpoint_names_are_told(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its configuration may name any file of this machine: decoding reads it, and says so; preparation does not."""

    def change(content: dict[str, Any]) -> None:
        config = content["config"]
        config["decode"].update(hotwords="/etc/hostname", lm="mine/lm.pt")
        config["decode"]["by_method"]["greedy_search"] = {"ngram": "secret.arpa"}
        config["augment"]["musan"] = config["lm"]["text"] = "/etc"
        config["average"]["checkpoints"] = ["/etc/passwd"]

    exp = changed(experiment, tmp_path, change)
    checkpoint = exp / "checkpoints" / "epoch-1.pt"
    load_averaged(checkpoint, ["decode.lm=my.pt"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(str(checkpoint) in line for line in lines)
    assert "decode.hotwords=/etc/hostname" in lines[0] and "decode.by_method.greedy_search.ngram=secret.arpa" in lines[1]
    checkpoint_conf.main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "conf.yaml")])
    assert len(capsys.readouterr().err.splitlines()) == 3
    named = named_files(to_dict(load_config(tmp_path / "conf.yaml")))
    assert {key for key, _ in named} == {"decode.hotwords", "decode.lm", "decode.by_method.greedy_search.ngram"}


@pytest.mark.parametrize("label", ["..", "." * 300, "../../evil", "x" * 1000, "語" * 1000, "", "a\n"])
def test_the_label_of_a_checkpoint_names_no_other_folder(tmp_path: Path, label: str) -> None:
    path = tmp_path / "decode" / "greedy_search" / "test.jsonl"
    made_by = {"label": label, "date": "", "commit": "", "average": "", "options": {}}
    write_set(path, [{"id": "a"}], {"made_by": made_by})
    write_set(path, [{"id": "b"}], {"made_by": {**made_by, "label": "new"}})
    [moved] = [p for p in tmp_path.rglob("*.jsonl") if p != path]
    assert moved.read_text() == '{"id": "a"}\n' and moved.resolve().parents[2] == (tmp_path / "decode_earlier").resolve()
    assert moved.parent.name == "greedy_search"


def spoil_optimizer(content: dict[str, Any]) -> None:
    state = content["optimizer"]["state"]
    first = state[next(iter(state))]
    first[next(key for key, value in first.items() if isinstance(value, torch.Tensor) and value.dim() > 0)] = torch.ones(7)


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the shape of a moment": spoil_optimizer,
    "the step is below 0": lambda content: content["optimizer"]["state"][0].update(step=-5),
    "a moment is missing": lambda content: [state.pop("exp_avg") for state in content["optimizer"]["state"].values()],
    "no state": lambda content: content["optimizer"]["state"].update({0: 3}),
    "the rate is text": lambda content: content["optimizer"]["param_groups"][0].update(lr="x"),
    "the rate is a list": lambda content: content["optimizer"]["param_groups"][0].update(lr=[1]),
    "a number is missing": lambda content: content["optimizer"]["param_groups"][0].pop("betas"),
    "a pair is a number": lambda content: content["optimizer"]["param_groups"][0].update(betas=0.5),
    "not one group": lambda content: content["optimizer"].update(param_groups=[]),
    "the average is broadcast": lambda content: content["average"]["state"].update(
        {"joiner.output_linear.weight": torch.ones(1, dtype=torch.float64)}
    ),
    "the average has whole numbers": lambda content: content["average"]["state"].update(
        {"joiner.output_linear.bias": torch.ones_like(content["model"]["joiner.output_linear.bias"], dtype=torch.int64)}
    ),
    "the period is 0": lambda content: content["average"].update(period=0),
    "the period is text": lambda content: content["average"].update(period="x"),
    "the batches are below 0": lambda content: content["average"].update(batches=-1),
    "the schedule": lambda content: content["schedule"].update(epoch="x"),
    "the schedule is huge": lambda content: content["schedule"].update(batch=10**400),
    "the random numbers": lambda content: content["rng"].update(cpu=torch.zeros(3)),
    "the others' random numbers": lambda content: content["rng"].update(others=3),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stop a training after two steps."""
    exp = tmp_path_factory.mktemp("stopped")
    trainer(exp, "train.max_steps=2", "train.valid_utterances=0").run()
    return exp


@pytest.mark.parametrize("name", SPOILED)
def test_training_does_not_resume_from_damaged_values(stopped: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "exp" / "checkpoints" / "step-2.pt"
    shutil.copytree(stopped, tmp_path / "exp")
    content = load_file(path)
    SPOILED[name](content)
    save_file(content, path)
    with pytest.raises(UserError, match=r"step-2\.pt: "):
        trainer(tmp_path / "exp", "train.max_steps=4", "train.valid_utterances=0")


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_resumes_from_what_it_saved(tmp_path: Path, name: str) -> None:
    options = [f"optim.name={name}", "train.valid_utterances=0"]
    trainer(tmp_path, "train.max_steps=2", *options).run()
    assert trainer(tmp_path, "train.max_steps=3", *options).step == 2
