"""Hostile archives of weights: with code, not what they seem, and with values that are not weights."""

from __future__ import annotations

import io
import pickle
import resource
import shutil
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from local.artifacts.checkpoint import load_file, save_file
from local.artifacts.plain_values import tensor_problem
from local.common.errors import UserError
from tests.artifacts import torchscript_writer
from tests.artifacts.odd_tensors import ODD, raw

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
    """The hash of a pair of pairs of pairs ... is computed again for each: that of 60 levels never ends."""
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
