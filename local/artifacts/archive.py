"""Whether a file is what torch.save writes of plain values and tensors, and nothing else; torch has not seen it yet.

Versions of torch differ in what they run of a file, and none checks that a tensor lies within the file. So an archive may hold
only the members of torch.save, and its pickle may name only the makers of plain tensors. Nothing in it is called.
"""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any, BinaryIO, ClassVar, NamedTuple

from local.config.limits import shown

import torch

MEMBER = re.compile(r"data\.pkl|version|byteorder|data/[0-9]+|\.data/serialization_id|\.format_version|\.storage_alignment")
END = 22  # bytes of the record at the end of an archive without a comment
LOCAL_HEADER = 30  # bytes before each member, without its name
STORAGES = {  # torch's classes of storage: bytes per number
    **dict.fromkeys(("torch.ByteStorage", "torch.CharStorage", "torch.BoolStorage", "torch.storage.UntypedStorage"), 1),
    **dict.fromkeys(("torch.HalfStorage", "torch.BFloat16Storage", "torch.ShortStorage"), 2),
    **dict.fromkeys(("torch.FloatStorage", "torch.IntStorage"), 4),
    **dict.fromkeys(("torch.DoubleStorage", "torch.LongStorage"), 8),
}
TENSOR, PARAMETER, ORDERED = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "collections.OrderedDict"
MAKERS = (TENSOR, PARAMETER, ORDERED)
Sizes = dict[str, int]  # of the members, in bytes


class Stored(NamedTuple):
    """A tensor as its pickle describes it. Nothing is checked yet but that its storage is a member of the right size."""

    storage: tuple[str, str, int]  # the class's name, the member's key, the count of its numbers
    offset: Any
    shape: Any
    stride: Any


def check_archive(file: BinaryIO, ignored: Collection[str] = ()) -> Any:
    """Raise an exception that says why `file`, open for reading, is not an archive of torch.save; read all of it for that.

    Return what its pickle describes, with `Stored` for tensors. ignored: names of classes whose values become None.
    """
    with zipfile.ZipFile(file) as archive:
        sizes = _members(archive)
        if archive.comment or file.seek(-END, io.SEEK_END) < archive.start_dir or file.read(4) != b"PK\5\6":
            raise ValueError("bytes after the archive")
        if (damaged := archive.testzip()) is not None:  # torch does not verify checksums
            raise ValueError(f"wrong checksum of {damaged}")
        root = archive.namelist()[0].partition("/")[0]
        described = _Check(archive.read(f"{root}/data.pkl"), sizes, ignored).load()
    file.seek(0)
    # This list is private, but it alone tells what torch finds: readers of damaged archives can differ.
    if sorted(torch._C.PyTorchFileReader(file).get_all_records()) != sorted(sizes):
        raise ValueError("torch finds other members in it than the list at its end names")
    file.seek(0)
    return described


def _members(archive: zipfile.ZipFile) -> Sizes:
    """Return the sizes of the members, by their names below the archive's one folder. Raises ValueError for odd ones."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    sizes: Sizes = {}
    end = 0
    for info in infos:
        root, _, name = info.filename.partition("/")
        if MEMBER.fullmatch(name) is None or root != infos[0].filename.partition("/")[0] or PurePosixPath(root).name != root:
            raise ValueError(f"has a member that torch.save does not write: {ascii(info.filename)[:100]}")
        if name in sizes:
            raise ValueError(f"has the member {name} more than once")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise ValueError(f"its member {name} is compressed or encrypted; torch.save does neither")
        if info.header_offset < end or (not sizes and info.header_offset > 0):
            raise ValueError(f"its member {name} overlaps another one, or bytes are before the archive")
        sizes[name], end = info.file_size, info.header_offset + LOCAL_HEADER + len(info.filename.encode()) + info.file_size
    if end > archive.start_dir or "data.pkl" not in sizes:
        raise ValueError("its members end after the archive, or data.pkl is not among them")
    return sizes


class _StandIn:
    """What the pickle gets for a class or function: it keeps its name and runs nothing."""

    def __init__(self, name: str, ignored: bool) -> None:
        self.name, self.ignored = name, ignored

    def __call__(self, *args: Any) -> Any:
        if self.ignored:
            return None
        if self.name == ORDERED:
            return {}
        if self.name == PARAMETER:
            return args[0]
        if self.name != TENSOR:
            raise ValueError(f"has a storage that is not a tensor's: {self.name}")
        return Stored(*args[:4])


class _Check(pickle._Unpickler):  # type: ignore[name-defined]  # the one in Python: the other does not show the keys of dicts
    """Go through a pickle without making what it describes. Raises ValueError for anything but plain values and tensors."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, data: bytes, sizes: Sizes, ignored: Collection[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.sizes, self.ignored = sizes, ignored

    def find_class(self, module: str, name: str) -> _StandIn:
        """Return a stand-in for a known name."""
        found = f"{module}.{name}"
        if found not in MAKERS and found not in STORAGES and found not in self.ignored:
            raise ValueError(f"has {shown(found)}, which is not a plain value or tensor")
        return _StandIn(found, found in self.ignored)

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        """Return the storage of a `Stored`. Raises ValueError unless its member holds as many numbers as it should."""
        _, kind, key, _, count = pid
        each = STORAGES[kind.name]
        if type(count) is not int or self.sizes[f"data/{key}"] != count * each:
            raise ValueError(f"its member data/{shown(key)} does not hold as many numbers as it should")
        return kind.name, str(key), count

    def load_setitem(self) -> None:
        """Refuse a key that is not text or a whole number: the hash of others can take for ever."""
        self._check_keys(self.stack[-2:-1])
        pickle._Unpickler.load_setitem(self)  # type: ignore[attr-defined]

    def load_setitems(self) -> None:
        """As `load_setitem`, for several."""
        self._check_keys(self.stack[::2])
        pickle._Unpickler.load_setitems(self)  # type: ignore[attr-defined]

    def load_dict(self) -> None:
        """As `load_setitem`, for several."""
        self._check_keys(self.stack[::2])
        pickle._Unpickler.load_dict(self)  # type: ignore[attr-defined]

    def load_build(self) -> None:
        """Allow attributes of dicts alone: torch's are their `_metadata`."""
        if not isinstance(self.stack[-2], dict):
            self.refuse()
        self.stack.pop()

    def refuse(self) -> None:
        """Refuse what no pickle of torch has: sets, which hash their values, and what makes or changes objects.

        An array of bytes takes the memory that it states before its bytes are read.
        """
        raise ValueError("has values that are neither plain nor tensors")

    def _check_keys(self, keys: list[Any]) -> None:
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("has a key that is neither text nor a whole number")

    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]], dispatch[pickle.DICT[0]] = load_setitem, load_setitems, load_dict
    dispatch[pickle.BUILD[0]] = load_build
    for _code in (
        pickle.EMPTY_SET,
        pickle.ADDITEMS,
        pickle.FROZENSET,
        pickle.NEWOBJ,
        pickle.NEWOBJ_EX,
        pickle.INST,
        pickle.OBJ,
        pickle.BYTEARRAY8,
    ):
        dispatch[_code[0]] = refuse
