"""Writes a part of a corpus as shards in lhotse's Shar format, with what may be wrong with a shard."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from tests.own_data.claims import EITHER, LOST, Claim
from tests.own_data.plans import PartPlan, claim_of, lay_out

from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

SIZE = 2  # cuts of a shard
HARMS = ("tar cut off", "tar missing", "cuts cut off", "audio changed", "line malformed")  # of the first shard


def shar(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>/ with shards. style: exported apart, so that each shard has the cuts 0 to n; FLAC or WAV; one damaged."""
    apart, flac, damaged = plan.style[:3]
    folder = root / part
    folder.mkdir(parents=True)
    claims: list[Claim] = []
    found: list[MonoCut] = []
    for sound in lay_out(plan, root / f"source_{part}", numbers, part + "-{:04d}"):
        for u in sound.utterances:
            shard, place = divmod(len(found), SIZE)
            name = str(place) if apart else u.id
            source = AudioSource("file", list(range(sound.plan.channels)), str(sound.path))
            recording = Recording(f"r{len(found)}", [source], sound.plan.rate, sound.num_samples, sound.seconds)
            length, channel = u.plan.seconds, u.plan.channel
            supervision = SupervisionSegment(name, recording.id, 0.0, length, channel, u.text, speaker=u.speaker)
            found.append(MonoCut(name, u.start, length, channel, [supervision], recording=recording))
            cuts, tar = str(folder / f"cuts.{shard:06d}.jsonl.gz"), str(folder / f"recording.{shard:06d}.tar")
            worst = LOST if u.plan.harm == "empty text" else 0
            claims.append(claim_of(part, sound, u, [f"{cuts}:{place + 1}", name], worst, files={cuts, tar}))
    for shard, first in enumerate(range(0, len(found), SIZE)):
        export(found[first : first + SIZE], folder, shard, "flac" if flac else "wav")
    if damaged:
        harm = HARMS[len(found) % len(HARMS)]
        damage(folder, harm)
        for claim in claims[:SIZE]:
            claim.verdict, claim.why = max(claim.verdict, EITHER), f"{claim.why}, {harm}"
    return claims


def export(cuts: list[MonoCut], folder: Path, shard: int, codec: str) -> None:
    """Write one shard."""
    apart = folder / "export"
    apart.mkdir()
    CutSet.from_cuts(cuts).to_shar(apart, {"recording": codec}, shard_size=SIZE)
    for path in apart.iterdir():
        path.rename(folder / path.name.replace("000000", f"{shard:06d}"))
    apart.rmdir()


def damage(folder: Path, harm: str) -> None:
    """Damage the first shard of a folder."""
    tar, cuts = folder / "recording.000000.tar", folder / "cuts.000000.jsonl.gz"
    content = tar.read_bytes()
    if harm == "tar cut off":
        tar.write_bytes(content[: len(content) // 4])
    elif harm == "tar missing":
        tar.unlink()
    elif harm == "cuts cut off":
        cuts.write_bytes(cuts.read_bytes()[:-20])
    elif harm == "audio changed":
        tar.write_bytes(content[:700] + bytes(b ^ 0x5A for b in content[700:900]) + content[900:])
    else:
        lines = gzip.decompress(cuts.read_bytes()).splitlines(keepends=True)
        cuts.write_bytes(gzip.compress(b"".join([lines[0][: len(lines[0]) // 2] + b"\n", *lines[1:]])))
