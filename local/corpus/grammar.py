"""The corpus `tiny` on paper: its YAML file, the phrases drawn from its grammar, and who speaks in which part."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from local.common.errors import UserError

import yaml

SPEC = Path(__file__).resolve().parents[2] / "egs" / "tiny" / "speech.yaml"
MAX_DEPTH = 8  # of classes within classes; more is a class that holds itself
Range = tuple[float, float]


@dataclass(frozen=True)
class PartSpec:
    """How much a part holds: `minutes` of sound, evenly over `voices`."""

    minutes: float
    voices: int


@dataclass(frozen=True)
class Spec:
    """speech.yaml as it stands there; pairs are the ends of uniform draws."""

    parts: dict[str, PartSpec]
    accents: list[str]
    variants: list[str]
    rate: Range
    pitch: Range
    range: Range
    sampling_rate: int
    silence_before: Range
    silence_after: Range
    level: Range
    snr: Range
    phrases: dict[str, float]
    classes: dict[str, list[str]]


@dataclass(frozen=True)
class Voice:
    """A speaker: eSpeak NG's accent and variant, its rate (words a minute), pitch and pitch range (0 to 99)."""

    id: int
    part: str
    accent: str
    variant: str
    rate: int
    pitch: int
    range: int

    @property
    def name(self) -> str:
        """As eSpeak NG wants it: `en-us+f2`."""
        return f"{self.accent}+{self.variant}"

    @property
    def sex(self) -> str:
        """`F` or `M`, by the variant's name."""
        return "F" if re.fullmatch(r"f\d|linda|grandma|Annie|aunty", self.variant) else "M"


def load_spec(path: Path = SPEC) -> Spec:
    """Read and check a speech.yaml; `UserError` names the file and the key."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        parts = {name: PartSpec(float(p["minutes"]), int(p["voices"])) for name, p in tree["parts"].items()}
        values: dict[str, Any] = {**tree["voices"], **tree["sound"], "parts": parts}
        values |= {key: tree[key] for key in ("phrases", "classes")}
    except FileNotFoundError as e:
        raise UserError(f"{path}: no such file") from e
    except KeyError as e:
        raise UserError(f"{path}: the key {e} is missing") from e
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: {' '.join(str(e).split())}") from e
    keys = {f.name for f in fields(Spec)}
    if wrong := keys ^ set(values):
        raise UserError(f"{path}: keys missing or unknown: {', '.join(sorted(wrong))}")
    for key in ("phrases", "classes"):
        if not isinstance(values[key], dict) or not values[key]:
            raise UserError(f"{path}: key '{key}': a mapping is meant")
    spec = Spec(**values)
    try:
        vocabulary(spec)  # a class that is missing or holds itself is found here
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    return spec


def vocabulary(spec: Spec) -> list[str]:
    """All words that the grammar can say, sorted; `UserError` for a class that is missing or holds itself."""
    words: set[str] = set()

    def visit(template: str, depth: int) -> None:
        for token in template.split():
            if token.startswith("<"):
                for entry in entries(spec, token, depth):
                    visit(entry, depth + 1)
            elif token != "|":
                words.add(token)

    for phrase in spec.phrases:
        visit(phrase, 0)
    return sorted(words)


def entries(spec: Spec, token: str, depth: int) -> list[str]:
    """What `<class>` may stand for."""
    found = spec.classes.get(token.strip("<>"))
    if not found:
        raise UserError(f"class {token} of the phrases is not defined under `classes`")
    if depth >= MAX_DEPTH:
        raise UserError(f"class {token} holds itself")
    return [str(e) for e in found]


class Phrases:
    """Random phrases, the same ones for the same `seed` on every Python version."""

    def __init__(self, spec: Spec, seed: str) -> None:
        self.spec = spec
        self.rng = random.Random(seed)

    def draw(self) -> tuple[str, str]:
        """-> (what eSpeak NG is given, lower case with commas for pauses; the transcript, upper case)."""
        template = self.rng.choices(list(self.spec.phrases), list(self.spec.phrases.values()))[0]
        tokens = self.expand(template)
        text = " ".join(t for t in tokens if t != "|")
        said = " ".join("," if t == "|" else t for t in tokens if t != "|" or self.rng.random() < 0.5)
        # Lower case, since eSpeak NG spells or stresses words in capitals.
        return said.replace(" ,", ",").lower(), text

    def expand(self, template: str, depth: int = 0) -> list[str]:
        """The words and pauses of a template, its classes drawn."""
        out: list[str] = []
        for token in template.split():
            if token.startswith("<"):
                out += self.expand(self.rng.choice(entries(self.spec, token, depth)), depth + 1)
            else:
                out.append(token)
        return out


def assign_voices(spec: Spec, seed: int) -> list[Voice]:
    """Who speaks: no accent and variant meet in two parts, and what dev and test have of either, train has too.

    Parts other than the largest take the pairs whose accent and variant they have least of so far, so that a small set
    covers both; the largest takes from what is left. Ids count from 1001 in the first part, 2001 in the second...
    """
    rng = random.Random(f"{seed}/voices")
    pairs = [(a, v) for a in spec.accents for v in spec.variants]
    if sum(p.voices for p in spec.parts.values()) > len(pairs):
        raise UserError(f"the parts ask for more voices than {len(pairs)} pairs of accents and variants")
    rng.shuffle(pairs)
    chosen: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(spec.parts, key=lambda n: spec.parts[n].voices):
        used: Counter[str] = Counter()
        chosen[name] = []
        for _ in range(spec.parts[name].voices):
            pair = min(pairs, key=lambda p: used[p[0]] / len(spec.variants) + used[p[1]] / len(spec.accents))
            pairs.remove(pair)
            used.update(pair)
            chosen[name].append(pair)

    def draw(ends: Range) -> int:
        return round(rng.uniform(*ends))

    return [
        Voice(1000 * i + j, name, accent, variant, draw(spec.rate), draw(spec.pitch), draw(spec.range))
        for i, name in enumerate(spec.parts, 1)
        for j, (accent, variant) in enumerate(chosen[name], 1)
    ]
