"""The plan of the corpus `tiny`: its YAML file, phrases drawn from its grammar, and the voices of each part."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from local.common.errors import UserError
from local.common.text_files import read_yaml

SPEC = Path(__file__).resolve().parents[2] / "egs" / "tiny" / "speech.yaml"
MAX_DEPTH = 8  # of classes within classes; a deeper class contains itself
Range = tuple[float, float]


@dataclass(frozen=True)
class PartSpec:
    """The amount of a part: `minutes` of audio, spread evenly over `voices`."""

    minutes: float
    voices: int


@dataclass(frozen=True)
class Spec:
    """The content of speech.yaml; pairs are the ends of uniform distributions."""

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
    """A speaker: eSpeak NG's accent and variant, its rate (words per minute), pitch and pitch range (0 to 99)."""

    id: int
    part: str
    accent: str
    variant: str
    rate: int
    pitch: int
    range: int

    @property
    def name(self) -> str:
        """Name of the voice for eSpeak NG: `en-us+f2`."""
        return f"{self.accent}+{self.variant}"

    @property
    def sex(self) -> str:
        """`F` or `M`, from the variant's name."""
        return "F" if re.fullmatch(r"f\d|linda|grandma|Annie|aunty", self.variant) else "M"


def load_spec(path: Path = SPEC) -> Spec:
    """Read and check a speech.yaml. Raises `UserError` naming the file and the key."""
    tree = read_yaml(path)
    try:
        parts = {name: PartSpec(float(p["minutes"]), int(p["voices"])) for name, p in tree["parts"].items()}
        grammar = {key: tree[key] for key in ("phrases", "classes")}
        values: dict[str, Any] = {**tree["voices"], **tree["sound"], **grammar, "parts": parts}
    except KeyError as e:
        raise UserError(f"{path}: the key {e} is missing") from e
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: {' '.join(str(e).split())}") from e
    keys = {f.name for f in fields(Spec)}
    if wrong := keys ^ set(values):
        raise UserError(f"{path}: keys missing or unknown: {', '.join(sorted(wrong))}")
    for key in ("phrases", "classes"):
        if not isinstance(values[key], dict) or not values[key]:
            raise UserError(f"{path}: key '{key}' must be a non-empty mapping")
    spec = Spec(**values)
    try:
        vocabulary(spec)  # finds classes that are missing or contain themselves
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    return spec


def vocabulary(spec: Spec) -> list[str]:
    """Return all words of the grammar, sorted. Raises `UserError` if a class is missing or contains itself."""
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
    """Return the entries of `<class>`. Raises `UserError` if it is missing or `depth` is too large."""
    found = spec.classes.get(token.strip("<>"))
    if not found:
        raise UserError(f"class {token} of the phrases is not defined under `classes`")
    if depth >= MAX_DEPTH:
        raise UserError(f"class {token} contains itself")
    return [str(e) for e in found]


class Phrases:
    """Random phrases; they are the same for the same seed on every Python version."""

    def __init__(self, spec: Spec, seed: str) -> None:
        """Start the sequence of phrases of `seed`."""
        self.spec = spec
        self.rng = random.Random(seed)

    def draw(self) -> tuple[str, str]:
        """Return eSpeak NG's input, lower case with commas for pauses, and the transcript, upper case."""
        template = self.rng.choices(list(self.spec.phrases), list(self.spec.phrases.values()))[0]
        tokens = self.expand(template)
        text = " ".join(t for t in tokens if t != "|")
        said = " ".join("," if t == "|" else t for t in tokens if t != "|" or self.rng.random() < 0.5)
        # Lower case: eSpeak NG would spell or stress words in capitals.
        return said.replace(" ,", ",").lower(), text

    def expand(self, template: str, depth: int = 0) -> list[str]:
        """Return the words and pauses of a template, with an entry drawn for each class."""
        out: list[str] = []
        for token in template.split():
            if token.startswith("<"):
                out += self.expand(self.rng.choice(entries(self.spec, token, depth)), depth + 1)
            else:
                out.append(token)
        return out


def assign_voices(spec: Spec, seed: int) -> list[Voice]:
    """Choose the voices of each part. Raises `UserError` if there are fewer pairs of accent and variant than voices.

    No pair is in two parts, and train has every accent and variant of dev and test. Smaller parts choose first, and each takes
    the pair whose accent and variant it has least of. Ids start at 1001 in the first part, 2001 in the second.
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
