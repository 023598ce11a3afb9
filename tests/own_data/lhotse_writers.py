"""Writes a part of a corpus as lhotse's manifests, line by line: recordings with supervisions, cuts, and Shar."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.own_data.claims import EITHER, LOST, Claim
from tests.own_data.plans import PartPlan, Sound, Utterance, claim_of, lay_out
from tests.own_data.tones import frequency_of
from tests.own_data.writers import Lines, again, other_text

from lhotse import MonoCut, Recording, SupervisionSegment

LINE_HARMS = (
    "empty text",
    "malformed",
    "repeated",
    "other text",
    "id of the last",
    "outside",
    "nan",
    "no channel",
    "no audio",
    "no text",
)
STATED_HARMS = {"stated too long": EITHER, "stated too short": EITHER, "rounded": 0, "wrong rate": EITHER}
SPEED = 1.1
ODD_IDS = "\u00fc {:04d}/a#b"


def recording_of(sound: Sound, name: str, source: str) -> dict[str, Any]:
    """Return lhotse's description of a file, with what is wrong with it."""
    samples, rate, harm = sound.num_samples, sound.plan.rate, sound.plan.harm
    if harm == "stated too long":
        samples = samples * 3 // 2
    elif harm == "stated too short":
        samples = samples * 4 // 5
    elif harm == "wrong rate":
        rate = 22050
    duration = samples / rate
    if harm == "rounded":
        duration = round(duration, 2)
        samples = round(duration * rate)
    channels = list(range(sound.plan.channels))
    return {
        "id": name,
        "sources": [{"type": "file", "channels": channels, "source": source}],
        "sampling_rate": rate,
        "num_samples": samples,
        "duration": duration,
        "channel_ids": channels,
    }


def supervision_of(sound: Sound, u: Utterance, name: str, recording: str, start: float) -> dict[str, Any]:
    """Return lhotse's description of an utterance that starts at `start` s, with what is wrong with it."""
    duration: float = u.plan.seconds
    channel = u.plan.channel
    if u.plan.harm == "outside":
        start += sound.seconds + 0.5
    elif u.plan.harm == "nan":
        duration = float("nan")
    elif u.plan.harm == "no channel":
        channel = 5
    return {
        "id": name,
        "recording_id": "nowhere" if u.plan.harm == "no audio" else recording,
        "start": start,
        "duration": duration,
        "channel": channel,
        "text": u.text,
        "speaker": u.speaker,
    }


def line_verdict(sound: Sound, u: Utterance) -> int:
    """Return what may become of an utterance, as far as its line and the stated lengths are concerned."""
    if u.plan.harm in ("empty text", "malformed", "outside", "nan", "no channel", "no audio", "no text"):
        return LOST
    return max(EITHER if u.plan.harm == "id of the last" else 0, STATED_HARMS.get(sound.plan.harm, 0))


def silent(group: Sequence[Utterance]) -> Utterance | None:
    """Return the one that stands for a recording or a cut without a supervision; None if it has one."""
    return group[0] if all(u.plan.harm == "no text" for u in group) else None


def save(lines: Lines) -> None:
    """Write the lines to their file, compressed if its name says so."""
    lines.path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(line + "\n" for line in lines.lines).encode()
    lines.path.write_bytes(gzip.compress(content, 1) if lines.path.suffix == ".gz" else content)


def sped_up(recording: dict[str, Any], supervision: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the copies at 1.1 times the speed that icefall's recipes put into manifests."""
    copy = Recording.from_dict(json.loads(json.dumps(recording))).perturb_speed(SPEED)
    moved = SupervisionSegment.from_dict(dict(supervision)).perturb_speed(SPEED, sampling_rate=recording["sampling_rate"])
    return copy.to_dict(), moved.to_dict()


def claim_of_copy(claim: Claim, names: list[str], u: Utterance) -> Claim:
    """Return the claim of such a copy: it may be left out, as training makes its own."""
    values = {"names": {*names}, "verdict": max(EITHER, claim.verdict), "why": f"copy, {claim.why}"}
    values |= {"frequency": SPEED * frequency_of(u.number), "seconds": u.plan.seconds / SPEED}
    return Claim(**{**vars(claim), **values})


def manifests(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write recordings_<part>.jsonl.gz and supervisions. style: relative paths, compressed, odd ids, copies, a prefix."""
    ending = ".jsonl.gz" if plan.style[1] else ".jsonl"
    prefix = "mine_" if plan.style[4] else ""
    files = [root / f"{prefix}{kind}_{part}{ending}" for kind in ("recordings", "supervisions")]
    return _manifests(root, part, plan, numbers, *map(Lines, files))


def own_names(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>/recordings.jsonl.gz and supervisions.jsonl.gz, or <part>/cuts.jsonl.gz, as lhotse names them."""
    if plan.style[5]:
        return _cuts(root / part, part, plan, numbers, Lines(root / part / "cuts.jsonl.gz"))
    files = [root / part / f"{kind}.jsonl.gz" for kind in ("recordings", "supervisions")]
    return _manifests(root / part, part, plan, numbers, *map(Lines, files))


def _manifests(
    root: Path, part: str, plan: PartPlan, numbers: Iterator[int], recordings: Lines, supervisions: Lines
) -> list[Claim]:
    relative, copies = plan.style[0], plan.style[3]
    claims: list[Claim] = []
    last = ""
    for sound in lay_out(plan, root / f"audio_{part}", numbers, ODD_IDS if plan.style[2] else part + "-{:04d}"):
        name = f"rec-{sound.utterances[0].number}"
        recording = recording_of(sound, name, str(sound.path.relative_to(root) if relative else sound.path))
        recordings.add(json.dumps(recording))
        copied = False
        for u in sound.utterances:
            if u.plan.harm == "no text":
                if u is silent(sound.utterances):
                    claims.append(claim_of(part, sound, u, [name, u.id], LOST, word=""))
                continue
            key = last if u.plan.harm == "id of the last" and last else u.id
            last = key
            supervision = supervision_of(sound, u, key, name, u.start)
            written = json.dumps(supervision)
            where = supervisions.add(written[: len(written) // 2] if u.plan.harm == "malformed" else written)
            claims.append(claim_of(part, sound, u, [key, where, name], line_verdict(sound, u)))  # name: if it has no other
            if u.plan.harm == "repeated":
                claims.append(again(claims[-1], [key, supervisions.add(written)]))
            elif u.plan.harm == "other text":
                claims.append(other_text(sound, u, claims[-1], [key], numbers))
                claims[-1].names.add(supervisions.add(json.dumps({**supervision, "text": claims[-1].text})))
            elif copies and not sound.plan.harm and not u.plan.harm:
                copy, moved = sped_up(recording, supervision)
                claims.append(claim_of_copy(claims[-1], [moved["id"], supervisions.add(json.dumps(moved))], u))
                if not copied:
                    recordings.add(json.dumps(copy))
                copied = True
    save(recordings)
    save(supervisions)
    return claims


def cuts(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write cuts_<part>.jsonl.gz. style: a cut for a file or an utterance, relative paths, recordings of one id, copies."""
    return _cuts(root, part, plan, numbers, Lines(root / f"cuts_{part}.jsonl.gz"))


def _cuts(root: Path, part: str, plan: PartPlan, numbers: Iterator[int], lines: Lines) -> list[Claim]:
    whole, relative, one_id, copies, multi = plan.style[:5]
    claims: list[Claim] = []
    last = ""
    for sound in lay_out(plan, root / f"audio_{part}", numbers, part + "-{:04d}"):
        name = "0" if one_id else f"rec-{sound.utterances[0].number}"
        recording = recording_of(sound, name, str(sound.path.relative_to(root) if relative else sound.path))
        for group in [sound.utterances] if whole and sound.plan.channels == 1 else [[u] for u in sound.utterances]:
            supervisions = []
            for u in group:
                if u.plan.harm != "no text":
                    last = last if u.plan.harm == "id of the last" and last else u.id
                    supervisions.append(supervision_of(sound, u, last, name, u.start - group[0].start))
            cut = cut_of(group, supervisions, recording, multi and sound.plan.channels == 2)
            added = add_cut(lines, part, sound, group, cut)
            claims += added
            if copies and len(group) == len(added) == 1 and not (sound.plan.harm or group[0].plan.harm or multi):
                plain = {k: v for k, v in json.loads(json.dumps(cut)).items() if k != "type"}
                copy = MonoCut.from_dict(plain).perturb_speed(SPEED)
                names = [copy.supervisions[0].id, copy.id, lines.add(json.dumps(copy.to_dict()))]
                claims.append(claim_of_copy(added[0], names, group[0]))
    save(lines)
    return claims


def cut_of(
    group: list[Utterance], supervisions: list[dict[str, Any]], recording: dict[str, Any], multi: bool
) -> dict[str, Any]:
    """Return lhotse's description of the cut of utterances that follow each other; multi: of both channels."""
    first = group[0]
    channel: int | list[int] = 5 if first.plan.harm == "no channel" else first.plan.channel
    if multi and channel == 0:
        channel = [0, 1]
        supervisions = [{**s, "channel": [0, 1]} if s["channel"] == 0 else s for s in supervisions]
    return {
        "id": f"cut-{first.id}",
        "start": first.start,
        "duration": sum(u.plan.seconds for u in group),
        "channel": channel,
        "supervisions": supervisions,
        "recording": recording,
        "type": "MonoCut" if isinstance(channel, int) else "MultiCut",
    }


def add_cut(lines: Lines, part: str, sound: Sound, group: list[Utterance], cut: dict[str, Any]) -> list[Claim]:
    """Add the line of a cut, with what is wrong with it, and return the claims of its utterances."""
    harms = [u.plan.harm for u in group]
    written = json.dumps(cut)
    malformed = "malformed" in harms
    where = lines.add(written[: len(written) // 2] if malformed else written)
    second = lines.add(written) if "repeated" in harms and not malformed else ""
    claims = []
    supervisions = iter(cut["supervisions"])
    for u in group:
        if u.plan.harm == "no text":
            if u is silent(group):
                claims.append(claim_of(part, sound, u, [cut["id"], where], LOST, word=""))
            continue
        name = next(supervisions)["id"]
        worst = line_verdict(sound, u)
        if u.plan.harm == "no audio" or (u.plan.harm == "no channel" and u is not group[0]):
            worst = EITHER  # a cut has its recording, and its channel, whatever its supervision says
        if malformed or "nan" in harms:  # the whole line is
            worst = LOST
        elif "no channel" in harms or "id of the last" in harms:
            worst = max(worst, EITHER)
        claims.append(claim_of(part, sound, u, [name, cut["id"], where], worst))
        if second:
            claims.append(again(claims[-1], [name, cut["id"], second]))
    return claims
