"""Writes a part of a corpus as text files: tables, Kaldi data directories, trees, and what other toolkits use.

Each writer lays out the audio, writes the lines with what is wrong with them, and returns what the utterances may claim.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.own_data.claims import EITHER, LOST, Claim
from tests.own_data.plans import PartPlan, Sound, Utterance, claim_of, lay_out, word_of

Writer = Callable[[Path, str, PartPlan, Iterator[int]], list[Claim]]
TABLE_HARMS = ("empty text", "malformed", "repeated", "other text")
KALDI_HARMS = ("empty text", "malformed", "repeated", "other text", "id of the last", "no text", "no audio", "shell")
SEGMENT_HARMS = ("empty text", "malformed", "repeated", "other text", "id of the last", "no text", "no audio", "outside", "nan")
TREE_HARMS = ("empty text", "repeated", "other text", "no text")


class Lines:
    """A text file that grows by lines; `add` returns `file:number`."""

    def __init__(self, path: Path) -> None:
        """Start a file; `save` writes it."""
        self.path, self.lines = path, []  # type: tuple[Path, list[str]]

    def add(self, line: str) -> str:
        """Add a line and return its place."""
        self.lines.append(line)
        return f"{self.path}:{len(self.lines)}"

    def save(self, bom: bool = False, crlf: bool = False) -> None:
        """Write the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end = "\r\n" if crlf else "\n"
        self.path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + "".join(line + end for line in self.lines).encode())


def other_text(sound: Sound, utterance: Utterance, claim: Claim, names: list[str], numbers: Iterator[int]) -> Claim:
    """Return the claim of a line that gives the same id or file another text, which starts with a word of its own."""
    word = word_of(next(numbers))
    again = claim_of(claim.part, sound, utterance, [*names], EITHER, word=word, text=f"{word} instead")
    again.why += " second"
    return again


def again(claim: Claim, names: list[str]) -> Claim:
    """Return the claim of a line that is there a second time."""
    return Claim(**{**vars(claim), "names": {*names}, "merged": True, "verdict": LOST, "why": claim.why + " second"})


def table(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>.tsv or .csv. style: csv, header, ids, speakers, audio in another folder, as a spreadsheet saves it."""
    is_csv, header, ids, speakers, absolute, spreadsheet = plan.style[:6]
    ids = ids and header
    lines = Lines(root / f"{part}.{'csv' if is_csv else 'tsv'}")
    columns = ["path", "text"] + ["speaker"] * speakers + ["id"] * ids

    def row(cells: list[str]) -> str:
        if not is_csv:
            return "\t".join(cells)
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(cells)
        return buffer.getvalue()

    if header:
        lines.add(row(columns))
    claims: list[Claim] = []
    for sound in lay_out(plan, root / f"audio of {part}", numbers, part + "-{:04d}"):
        (u,) = sound.utterances
        name = f"my {u.id}" if ids else sound.path.stem
        path = str(sound.path if absolute else sound.path.relative_to(root))

        def cells(text: str, path: str = path, name: str = name, speaker: str = u.speaker) -> str:
            return row([path, text] + [speaker] * speakers + [name] * ids)

        if u.plan.harm == "malformed":
            claims.append(claim_of(part, sound, u, [lines.add(row([path]))], LOST))
            continue
        where = lines.add(cells(u.text))
        names = [where, name, f"{sound.path.parent.name}-{name}"]
        claims.append(claim_of(part, sound, u, names, LOST if u.plan.harm == "empty text" else 0))
        if u.plan.harm == "repeated":
            claims.append(again(claims[-1], [lines.add(cells(u.text)), name]))
        elif u.plan.harm == "other text":
            claims.append(other_text(sound, u, claims[-1], [name], numbers))
            claims[-1].names.add(lines.add(cells(claims[-1].text)))
    lines.save(spreadsheet, spreadsheet)
    return claims


def kaldi(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write a Kaldi data directory. style: with pipes, utt2spk, absolute paths."""
    return _kaldi(root, part, plan, numbers, segments=False)


def kaldi_segments(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write a Kaldi data directory with segments."""
    return _kaldi(root, part, plan, numbers, segments=True)


def _kaldi(root: Path, part: str, plan: PartPlan, numbers: Iterator[int], segments: bool) -> list[Claim]:
    pipes, speakers, absolute, last_is_open = plan.style[:4]
    folder = root / part
    scp, text, spk, seg = (Lines(folder / name) for name in ("wav.scp", "text", "utt2spk", "segments"))
    claims: list[Claim] = []
    last = ""
    for number, sound in enumerate(lay_out(plan, folder / "wav", numbers, part + "-{:04d}")):
        path = str(sound.path if absolute else sound.path.relative_to(root))
        value = f"cat '{sound.path}' |" if pipes and number % 2 == 0 else path
        recording = f"rec{number}"
        if segments:
            scp.add(f"{recording} {value}")
        for u in sound.utterances:
            harm, worst, names = u.plan.harm, 0, [u.id]
            name = last if harm == "id of the last" and last else u.id
            end = "-1" if last_is_open and u is sound.utterances[-1] and sound.plan.harm != "truncated" else f"{u.end:.3f}"
            times = f"{u.start:.3f} {end}"
            if harm == "outside":
                times = f"{sound.seconds + 0.5:.2f} {sound.seconds + 1:.2f}"
            elif harm == "nan":
                times = f"nan {u.end:.3f}"
            elif harm == "malformed":
                times = f"{u.start}"
            given = f"{recording} {times}" if segments else "" if harm == "malformed" else value
            if harm == "shell":
                given = "false |" if u.number % 2 else f"no-such-program-{u.number} '{sound.path}' |"
            if harm in ("empty text", "outside", "nan", "malformed", "no audio", "no text", "shell"):
                worst = LOST
            if name != u.id:
                names, worst = [name], EITHER
            lines = seg if segments else scp
            if segments:
                names.append(recording)  # if nothing else is in it
            if harm != "no audio":
                names.append(lines.add(f"{name} {given}"))
            if harm != "no text":
                names.append(text.add(f"{name} {u.text}"))
                names.append(spk.add(f"{name} {u.speaker}"))
            claims.append(claim_of(part, sound, u, names, worst, **({"word": ""} if harm == "no text" else {})))
            claims[-1].command = value.endswith("|")
            if harm == "repeated":
                claims.append(again(claims[-1], [lines.add(f"{name} {given}"), text.add(f"{name} {u.text}"), name]))
            elif harm == "other text":
                claims.append(other_text(sound, u, claims[-1], [name], numbers))
                claims[-1].names.add(text.add(f"{name} {claims[-1].text}"))
            last = "" if harm in ("no audio", "no text") else name  # else the id has one text and one audio of two utterances
    scp.save()
    text.save()
    if segments:
        seg.save()
    if speakers:
        spk.save()
    return claims


def librispeech(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>/<speaker>/<chapter>/ with .trans.txt."""
    folder = root / part / "7" / "1"
    lines = Lines(folder / "7-1.trans.txt")
    claims = []
    for sound in lay_out(plan, folder, numbers, "7-1-{:04d}"):
        (u,) = sound.utterances
        if u.plan.harm == "no text":
            if sound.plan.harm != "missing":
                claims.append(claim_of(part, sound, u, [u.id], LOST, word=""))
            continue
        names = [u.id, lines.add(f"{u.id} {u.text}")]
        claims.append(claim_of(part, sound, u, names, LOST if u.plan.harm == "empty text" else 0))
        if u.plan.harm == "repeated":
            claims.append(again(claims[-1], [lines.add(f"{u.id} {u.text}"), u.id]))
        elif u.plan.harm == "other text":
            claims.append(other_text(sound, u, claims[-1], [u.id], numbers))
            claims[-1].names.add(lines.add(f"{u.id} {claims[-1].text}"))
    lines.save()
    return claims


def nemo(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>.jsonl of `audio_filepath`, `duration`, `text`, and `offset` of a file with several utterances."""
    lines = Lines(root / f"{part}.json{'l' if plan.style[0] else ''}")
    claims = []
    for sound in lay_out(plan, root / f"audio-{part}", numbers, part + "-{:04d}"):
        for u in sound.utterances:
            path = str(sound.path if plan.style[1] else sound.path.relative_to(root))
            entry: dict[str, object] = {"audio_filepath": path, "duration": u.plan.seconds, "text": u.text}
            if len(sound.utterances) > 1:
                entry["offset"] = u.start
            if u.plan.harm == "outside":
                entry["offset"] = sound.seconds + 1
            start = float(str(entry.get("offset", 0)))
            times = f"{round(1000 * start):07d}-{round(1000 * (start + u.plan.seconds)):07d}"  # a part of the id
            if u.plan.harm == "nan":
                entry["duration"] = float("nan")
            written = json.dumps(entry, ensure_ascii=plan.style[2])
            unused = u.plan.harm == "nan" and "offset" not in entry  # a duration alone is not used
            bad = u.plan.harm in ("empty text", "malformed", "outside", "nan") and not unused
            where = lines.add(written[: len(written) // 2] if u.plan.harm == "malformed" else written)
            names = [where, u.id, f"{sound.path.stem}-{times}"]
            claims.append(claim_of(part, sound, u, names, LOST if bad else 0))
            if u.plan.harm == "repeated":
                claims.append(again(claims[-1], [lines.add(written), *names[1:]]))
    lines.save()
    return claims


def one_line(lines: Lines, part: str, sound: Sound, row: str, malformed: list[str], text: str | None = None) -> list[Claim]:
    """Write the line of a file's only utterance, or what is left of it; return the claims. malformed: that line, and names."""
    (u,) = sound.utterances
    if u.plan.harm == "malformed":
        return [claim_of(part, sound, u, [lines.add(malformed[0]), *malformed[1:]], LOST)]
    worst = LOST if u.plan.harm == "empty text" else 0
    claims = [claim_of(part, sound, u, [lines.add(row), u.id], worst, text=u.text if text is None else text)]
    if u.plan.harm == "repeated":
        claims.append(again(claims[0], [lines.add(row), u.id]))
    return claims


def common_voice(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>.tsv with the columns of Common Voice; its paths are relative to clips/."""
    lines = Lines(root / f"{part}.tsv")
    lines.add("client_id\tpath\tsentence_id\tsentence\tup_votes\tdown_votes\tage")
    claims = []
    for sound in lay_out(plan, root / "clips", numbers, f"common_voice_{part}" + "_{:04d}"):
        (u,) = sound.utterances
        row = f"{u.speaker}\t{sound.path.name}\tx{u.number}\t{u.text}\t2\t0\t"
        claims += one_line(lines, part, sound, row, [f"{u.speaker}\t{sound.path.name}"])
    lines.save()
    return claims


def ljspeech(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>/metadata.csv of id|text|normalised text, and wavs/."""
    folder = root / part
    lines = Lines(folder / "metadata.csv")
    claims = []
    for sound in lay_out(plan, folder / "wavs", numbers, part + "-{:04d}"):
        (u,) = sound.utterances
        text = u.text.replace("|", "")
        row = f"{u.id}|{text and 'Dr. 7'}|{text}" if plan.style[0] else f"{u.id}|{text}|{text}"
        claims += one_line(lines, part, sound, row, [u.id, u.id], text)
    lines.save()
    return claims


def beside_txt(root: Path, part: str, plan: PartPlan, numbers: Iterator[int]) -> list[Claim]:
    """Write <part>/*.wav, each with a .txt of the same name beside it."""
    folder = root / part
    claims = []
    for sound in lay_out(plan, folder / "deep" if plan.style[0] else folder, numbers, part + "-{:04d}"):
        (u,) = sound.utterances
        text = sound.path.with_suffix(".txt")
        names = [u.id, str(text), f"{text}:1"]
        if u.plan.harm == "no text":
            if sound.plan.harm not in ("missing", "a folder"):  # neither audio nor text: not an utterance
                claims.append(claim_of(part, sound, u, names, LOST, word=""))
            continue
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(u.text + "\n", encoding="utf-8")
        claims.append(
            claim_of(part, sound, u, names, LOST if u.plan.harm == "empty text" else 0, files={str(sound.path), str(text)})
        )
    return claims
