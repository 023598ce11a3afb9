"""Two experiments' results side by side: which is better, and whether the difference is more than chance. No files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from local.common.errors import UserError
from local.common.visible import visible
from local.scoring.align import Score, Unit, Utterance, score
from local.scoring.intervals import chance

LEVEL = 0.05  # a difference is significant if its P is below


@dataclass(frozen=True)
class Comparison:
    """One set and method of two experiments, over the utterances that both have with the same reference.

    first, second: the scores of these utterances, in the same order. alone: how many other utterances either has.
    p: see `chance`; 1 without a common utterance.
    """

    name: str
    method: str
    first: Score
    second: Score
    alone: int
    p: float

    @property
    def better(self) -> int:
        """1 if the first has fewer errors, 2 if the second has, 0 if they have equally many."""
        return (self.first.errors > self.second.errors) * 2 + (self.first.errors < self.second.errors)

    @property
    def verdict(self) -> str:
        """Tell whether the difference is significant, with P."""
        shown = "P < 0.001" if self.p < 0.001 else f"P = {self.p:.3f}" if self.p < 0.1 else f"P = {self.p:.2f}"
        return f"{'' if self.p < LEVEL else 'not '}significant ({shown})"

    def line(self, first: str, second: str) -> str:
        """Return the comparison as one line; first, second: the names of the experiments."""
        head = f"{visible(self.name)} {visible(self.method)}: "
        if self.first.wer is None or self.second.wer is None:
            return f"{head}no reference word in common; {self.alone} utterances are in one alone, or have another reference"
        rates = f"{visible(first)} {self.first.wer:.2f} %, {visible(second)} {self.second.wer:.2f} %"
        which = ("equal", f"{visible(first)} is better", f"{visible(second)} is better")[self.better]
        by = f" by {abs(self.first.wer - self.second.wer):.2f}" if self.better else ""
        return f"{head}{rates}; {which}{by}, {self.verdict}{self.restriction}"

    @property
    def restriction(self) -> str:
        """Tell how many utterances were compared, if not all; else ""."""
        count = len(self.first.utterances)
        return f", over the {count} utterances in common; {self.alone} others are left out" if self.alone else ""


def compare(name: str, method: str, first: Score, second: Score) -> Comparison:
    """Compare two scores of one set and method, by the unit of the first."""
    others = {u.id: u for u in second.utterances}
    common = [u for u in first.utterances if u.id in others and others[u.id].ref == u.ref]
    alone = len(first.utterances) + len(second.utterances) - 2 * len(common)
    first, unit = _of(first, common, first.unit), first.unit
    second = _of(second, [others[u.id] for u in common], unit)
    errors = zip(first.utterance_errors, second.utterance_errors, strict=True)
    return Comparison(name, method, first, second, alone, chance([a - b for a, b in errors]))


def _of(result: Score, utterances: Sequence[Utterance], unit: Unit) -> Score:
    """Return the score of some of the utterances."""
    return result if result.utterances == utterances and result.unit == unit else score(utterances, unit)


def compare_experiments(
    first: Mapping[str, Mapping[str, Score]], second: Mapping[str, Mapping[str, Score]], where: str
) -> list[Comparison]:
    """Return a comparison of each set and method that both have. where: the second experiment, for the message.

    Raises `UserError` if they have no set, method and utterance with the same reference in common.
    """
    found = [
        compare(name, method, ours, second[name][method])
        for name, methods in first.items()
        for method, ours in methods.items()
        if method in second.get(name, ())
    ]
    if not any(c.first.utterances for c in found):
        what = "utterance with the same reference" if found else "set and method"
        raise UserError(f"{where}: no {what} in common; decode the same test set with both")
    return found
