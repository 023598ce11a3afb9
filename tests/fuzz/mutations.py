"""Hostile changes of a file's bytes: blind ones, and ones that know its words, cells, JSON, YAML, archives and weights."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from tests.fault_formats import ODD, change

import torch
import yaml

Mutation = Callable[[bytes, random.Random], bytes]

HOSTILE = (
    *("", " ", ".", "..", "-", "~", "../../x", "../../../../x.wav", "/etc/passwd", "/etc/x", "/dev/zero", "/dev/stdin"),
    *("a;touch PWNED;.wav", "$(touch PWNED).wav", "`touch PWNED`", "touch PWNED |", "cat a.wav |", "|", "pipe:touch PWNED"),
    *("file:///etc/passwd", "http://127.0.0.1:9/a.wav", "s3://a/b.wav", "a.ark:17", "a.wav#0+10", "a.wav#-5+-9", "a.raw"),
    *("{0..999999999}", "{000..999}", "-1", "0", "-0.0", "nan", "inf", "-inf", "1e308", "-1e308", "1e-400", "1e5", "1_0"),
    *("9" * 25, "9" * 5000, "0x10", "\u0663", "true", "null", "\\ud800", "\ud800", "\0", "\ufeff", "\u202e", "\x1b[31m"),
    *("\u2028", "\x85", "\x1c", "\r", "\t", "\n", '"', "'", "\\", ",", ";", "#", "é", "e\u0301", "字", "\u2581", "ß"),
    *("=1+1", "@a", "<script>", "$\\frac{", "${oc.env:HOME}", "${data}", "%s%n", "x" * 300, "x" * 100_000, "a/" * 3000),
    *("<blk>", "<sos/eos>", "<unk>", "<s>", "</s>", "<eps>", "#0", "\\data\\", "\\1-grams:", "\\end\\", "ngram 1=999999999"),
)
ODD_VALUES = [*ODD, *HOSTILE, 2**63, -(2**63), 10**400, 1e308, 5e-324, [[]] * 3, [0] * 1000]
PIECE = re.compile(rb"[^\s,;|=:\"'{}\[\]#+]+")  # a word, a cell, a number


def mutate(name: str, data: bytes, rng: random.Random) -> bytes:
    """Return the content of the file `name` after one to four changes that suit its ending."""
    packed = name.endswith(".gz") and data[:2] == b"\x1f\x8b" and rng.random() < 0.9
    if packed:
        name, data = name.removesuffix(".gz"), gzip.decompress(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(kinds_of(name))(data, rng)
    return gzip.compress(data, 1) if packed else data


def kinds_of(name: str) -> list[Mutation]:
    """Return the mutations for a file of this name; one that fits better is there more often."""
    return BY_ENDING.get(PurePath(name).suffix, TEXT)


def place(data: bytes, rng: random.Random) -> int:
    """Return a place between two bytes, near the beginning more often."""
    return rng.randint(0, rng.choice((len(data), min(len(data), 64))))


# Bytes


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 2, 8, 64))):
        changed[min(place(data, rng), len(changed) - 1)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted((place(data, rng), place(data, rng)))
    return rng.choice((data[:first], data[:first] + data[last:], data[first:], b""))


def inserted(data: bytes, rng: random.Random) -> bytes:
    here = place(data, rng)
    return data[:here] + rng.randbytes(rng.choice((1, 4, 100))) + data[here:]


def number_set(data: bytes, rng: random.Random) -> bytes:
    """Write a number of 2, 4 or 8 bytes that lies at the edge of its type: sizes, counts and rates in headers."""
    size, order = rng.choice((2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (8 * size - 1) - 1, rng.getrandbits(8 * size)))
    here = min(place(data, rng), max(0, len(data) - size))
    return data[:here] + value.to_bytes(size, order) + data[here + size :]  # type: ignore[arg-type]


def repeated(data: bytes, rng: random.Random) -> bytes:
    first, last = sorted((place(data, rng), place(data, rng)))
    piece = data[first:last]
    return data[:last] + piece * min(rng.choice((1, 3, 1000)), 1 + 10**6 // max(1, len(piece))) + data[last:]


def spliced(data: bytes, rng: random.Random) -> bytes:
    """Put one piece of the file over another."""
    a, b, size = place(data, rng), place(data, rng), rng.choice((1, 8, 100))
    return data[:a] + data[b : b + size] + data[a + size :]


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((1, 100, 5000)))


BYTES: list[Mutation] = [flipped, flipped, flipped, cut, inserted, number_set, number_set, repeated, spliced, noise]


# Texts


def hostile(rng: random.Random) -> bytes:
    return rng.choice(HOSTILE).encode("utf-8", "surrogatepass")


def piece_changed(data: bytes, rng: random.Random) -> bytes:
    """Put a hostile word in the place of a word, before it or after it."""
    found = list(PIECE.finditer(data))
    if not found:
        return data + hostile(rng)
    match, word = rng.choice(found), hostile(rng)
    new = rng.choice((word, word, word, word + match[0], match[0] + word))
    return data[: match.start()] + new + data[match.end() :]


def piece_moved(data: bytes, rng: random.Random) -> bytes:
    """Put a word of the file in the place of another one."""
    found = list(PIECE.finditer(data))
    if not found:
        return data
    match, other = rng.choice(found), rng.choice(found)
    return data[: match.start()] + other[0] + data[match.end() :]


def lines_changed(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    row, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.choice(("twice", "gone", "swapped", "joined", "many", "last"))
    if how == "twice":
        lines.insert(other, lines[row])
    elif how == "gone":
        del lines[row]
    elif how == "swapped":
        lines[row], lines[other] = lines[other], lines[row]
    elif how == "joined":
        lines[row : row + 2] = [b" ".join(lines[row : row + 2])]
    elif how == "many":
        lines[row:row] = [lines[row]] * min(1000, 1 + 10**6 // (1 + len(lines[row])))
    else:
        lines = lines[: row + 1]
    return b"\n".join(lines)


def characters_inserted(data: bytes, rng: random.Random) -> bytes:
    what = rng.choice(
        (b"\0", b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n\n", b"\t", b'"', b"[" * 100_000, b"{" * 5000)
    )
    here = place(data, rng)
    return data[:here] + what + data[here:]


def written_otherwise(data: bytes, rng: random.Random) -> bytes:
    """Return the text with other line ends, in another encoding, or as one long line."""
    how = rng.choice(("crlf", "cr", "bom", "utf-16", "latin", "long", "upper"))
    if how in ("utf-16", "latin", "upper"):
        text = data.decode("utf-8", "replace")
        return text.upper().encode() if how == "upper" else text.encode("latin-1" if how == "latin" else how, "replace")
    ends = {"crlf": b"\r\n", "cr": b"\r", "long": b" "}
    return data.replace(b"\n", ends[how]) if how in ends else b"\xef\xbb\xbf" + data


TEXT: list[Mutation] = [piece_changed] * 8 + [piece_moved, lines_changed, characters_inserted, written_otherwise] * 2
TEXT += [flipped, cut, repeated, spliced, noise]


# Trees


def tree_changed(tree: Any, rng: random.Random) -> Any:
    """Return a tree of values with one of them changed, two keys swapped, or a value nested deeply."""
    how = rng.random()
    if not isinstance(tree, dict | list) or not tree or how < 0.03:
        return rng.choice(ODD_VALUES)
    if how < 0.12 and isinstance(tree, dict) and len(tree) > 1:
        a, b = rng.sample(list(tree), 2)
        tree[a], tree[b] = tree[b], tree[a]
    elif how < 0.15:
        for _ in range(rng.choice((10, 400))):
            tree = rng.choice(([tree], {"a": tree}))
    else:
        change(tree, rng, ODD_VALUES)
    return tree


def json_changed(data: bytes, rng: random.Random) -> bytes:
    """Change one value in a line of JSON."""
    lines = data.splitlines() or [b""]
    row = rng.randrange(len(lines))
    try:
        tree = tree_changed(json.loads(lines[row]), rng)
        lines[row] = json.dumps(tree, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return piece_changed(data, rng)
    return b"\n".join(lines) + b"\n"


def yaml_changed(data: bytes, rng: random.Random) -> bytes:
    if b": &" in data:  # anchors that grow, or that hold themselves, would fill this process
        return piece_changed(data, rng)
    try:
        tree = tree_changed(yaml.safe_load(data), rng)
        return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return piece_changed(data, rng)


def yaml_constructs(data: bytes, rng: random.Random) -> bytes:
    """Add what YAML has beside values: anchors that grow, tags of Python, merges, dates, other documents."""
    bomb = "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
    more = (f"a0: &a0 [x]\n{bomb}", "!!python/object/apply:os.system ['touch PWNED']", "b: &b [*b]", "<<: *a", "---\na: 1")
    return data + b"\n" + rng.choice((*more, "? {a: b}\n: c", "c: 2001-99-99", "d: !!binary x", "1: 2", "%TAG")).encode()


# Archives and weights


def tar_changed(data: bytes, rng: random.Random) -> bytes:
    """Write the archive again with one member of another name, kind, size, order or head."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(m, f.read() if (f := archive.extractfile(m)) else b"") for m in archive]
    except (tarfile.TarError, EOFError, ValueError, KeyError, OverflowError):
        return flipped(data, rng)
    if not members:
        return noise(data, rng)
    member, content = members[row := rng.randrange(len(members))]
    how = rng.choice(("name", "name", "link", "link", "kind", "twice", "gone", "shuffled", "content", "head"))
    if how == "name":
        member.name = rng.choice((*HOSTILE, *(f"../{member.name}", f"/tmp/{member.name}", f"a/../../{member.name}"))) or "."
    elif how == "link":
        member.type, member.size = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), 0
        member.linkname = rng.choice(("../../..", "/etc", "/etc/passwd", member.name, ".", *HOSTILE))
        inside = tarfile.TarInfo(f"{member.name}/x")  # a file that follows the link
        inside.size = 1
        members.insert(row + 1, (inside, b"x"))
    elif how == "kind":
        member.type = rng.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.CONTTYPE, b"Z"))
        member.mode = rng.choice((0, 0o7777))
    elif how == "content":
        name = member.name
        members[row] = (member, content := mutate(name if PurePath(name).suffix in BY_ENDING else name + ".txt", content, rng))
        member.size = len(content)
    elif how == "head":
        key = rng.choice(("path", "linkpath", "size", "uid", "mtime", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset", "x"))
        member.pax_headers = {key: rng.choice(HOSTILE)}
    elif how == "shuffled":
        rng.shuffle(members)
    else:
        members[row : row + (how == "gone")] = [] if how == "gone" else [members[row]]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogatepass") as archive:
        for info, inner in members:
            info.size = len(inner) if info.isreg() else 0
            try:
                archive.addfile(info, io.BytesIO(inner))
            except (ValueError, UnicodeError):  # a name that no archive can hold
                continue
    return out.getvalue()


def tgz_changed(data: bytes, rng: random.Random) -> bytes:
    try:
        return gzip.compress(tar_changed(gzip.decompress(data), rng), 1)
    except (OSError, EOFError, zlib.error):
        return flipped(data, rng)


PICKLES = (
    b"cos\nsystem\n(S'touch PWNED'\ntR.",
    b"cposix\nsystem\n(S'touch PWNED'\ntR.",
    b"\x80\x02cbuiltins\nexec\nX\x19\x00\x00\x00open('PWNED','w').write(1)\x85R.",
    b"\x80\x02csubprocess\nPopen\n]X\x05\x00\x00\x00touchaX\x05\x00\x00\x00PWNEDa\x85R.",
    b"\x80\x02ctorch\nload\nX\x0b\x00\x00\x00/etc/passwd\x85R.",
    b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R.",
    b"\x80\x02(" + b"]" * 10_000 + b"t.",
    b"\x80\x02]q\x00h\x00a.",  # a list in itself
)


def zip_changed(data: bytes, rng: random.Random) -> bytes:
    """Write an archive of weights or arrays again with one member of another name, content, kind or number."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # damaged by an earlier mutation
        return flipped(data, rng)
    if not members:
        return noise(data, rng)
    name, content = members[row := rng.randrange(len(members))]
    root = name.partition("/")[0]
    packed = zipfile.ZIP_STORED
    how = rng.choice(("pickle", "pickle", "code", "name", "twice", "gone", "content", "packed"))
    if how == "pickle":
        members = [(n, rng.choice(PICKLES) if n.endswith(".pkl") else c) for n, c in members]
    elif how == "code":
        names = (f"{root}/code/__torch__.py", f"{root}/constants.pkl", f"{root}/code/__torch__.py.debug_pkl", "constants.pkl")
        members.append((rng.choice(names), rng.choice((b"import os\n", *PICKLES))))
    elif how == "name":
        members[row] = (rng.choice((f"../{name}", f"/{name}", *(word for word in HOSTILE if "\ud800" not in word))), content)
    elif how == "content":
        members[row] = (name, rng.choice(BYTES)(content, rng))
    elif how == "packed":  # a thousand times larger than it seems
        packed, members[row] = zipfile.ZIP_DEFLATED, (name, bytes(rng.choice((10**5, 10**7))))
    else:
        members[row : row + (how == "gone")] = [] if how == "gone" else [members[row]]
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packed) as archive:
        warnings.simplefilter("ignore")  # a name twice
        for member, inner in members:
            with contextlib.suppress(ValueError, IndexError, struct.error):  # a name that no archive can hold
                archive.writestr(member, inner)
    return out.getvalue()


def weights_changed(data: bytes, rng: random.Random) -> bytes:
    """Change one value or tensor of a checkpoint."""
    try:
        tree = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:  # damaged by an earlier mutation
        return flipped(data, rng)
    if not isinstance(tree, dict):  # of an earlier mutation: a list in itself has no end
        return flipped(data, rng)
    out = io.BytesIO()
    torch.save(tensor_changed(tree, rng) if rng.random() < 0.3 else tree_changed(tree, rng), out)
    return out.getvalue()


def tensor_changed(tree: Any, rng: random.Random) -> Any:
    """Put a strange tensor in the place of one in `tree`: another layout, type or device, a view of few numbers."""
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict) or not model:
        return tree
    key = rng.choice(list(model))
    shape = model[key].shape if isinstance(model[key], torch.Tensor) else (2,)
    strange: list[Callable[[], Any]] = [
        lambda: torch.zeros(shape, device="meta"),
        lambda: torch.zeros(shape).to_sparse(),
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(shape, dtype=torch.complex64),
        lambda: torch.zeros(shape, dtype=torch.int8),
        lambda: torch.zeros(shape).to(getattr(torch, "float8_e4m3fn", torch.float16)),
        lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
        lambda: torch.nn.Parameter(torch.zeros(shape)),
        lambda: torch.full(shape, float("nan")),
    ]
    model[key] = rng.choice(strange)()
    return tree


BY_ENDING: dict[str, list[Mutation]] = {
    **dict.fromkeys((".json", ".jsonl"), [*([json_changed] * 20), *TEXT]),
    **dict.fromkeys((".yaml",), [*([yaml_changed] * 10), yaml_constructs, *TEXT]),
    **dict.fromkeys((".tar",), [*([tar_changed] * 20), *BYTES]),
    **dict.fromkeys((".gz", ".tgz"), [*([tgz_changed] * 10), *BYTES]),
    **dict.fromkeys((".pt",), [*([weights_changed] * 12), *([zip_changed] * 6), *BYTES]),
    **dict.fromkeys((".npz",), [*([zip_changed] * 10), *BYTES]),
    **dict.fromkeys(
        (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".w64", ".caf", ".sph", ".opus", ".m4a", ".model"), BYTES
    ),
}
