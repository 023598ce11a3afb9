"""The recorded digits model with prepared data of some utterances, for tests that export it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from local import export
from tests.digits import DEV, digits_folder, references, write_digits_checkpoint

from lhotse import CutSet, Recording, SupervisionSegment

NUMBER = 12  # utterances of the gate's quick tests


def write_digits_data(shared: Path, data: Path, number: int | None = NUMBER) -> Path:
    """Write prepared data with one part, `dev`: the first `number` utterances of the dev part. Return its folder."""
    texts, cuts = references(shared), []
    for path in sorted(digits_folder(shared, DEV).rglob("*.flac"), key=lambda p: p.stem)[:number]:
        cut = Recording.from_file(path, recording_id=path.stem).to_cut()
        cut.id = path.stem
        cut.supervisions = [SupervisionSegment(path.stem, path.stem, 0.0, cut.duration, text=texts[path.stem])]
        cuts.append(cut)
    (data / "cuts").mkdir(parents=True)
    CutSet.from_cuts(cuts).to_file(data / "cuts" / "dev.jsonl.gz")
    (data / "corpus.yaml").write_text("name: digits\nsource: librispeech\ntrain: [train]\ndev: [dev]\ntest: [dev]\n")
    return data


def write_digits(shared: Path, root: Path) -> Path:
    """Write root/averaged.pt and root/data of the recorded digits, and return `root`."""
    write_digits_checkpoint(shared, root)
    write_digits_data(shared, root / "data")
    return root


def run_export(root: Path, out: Path, *words: str) -> dict[str, Any]:
    """Export root/averaged.pt with the dev utterances of root/data, and return export.json."""
    export.main(["--checkpoint", str(root / "averaged.pt"), "--data-dir", str(root / "data"), "--out", str(out), *words])
    return json.loads((out / "export.json").read_text(encoding="utf-8"))


def copied(folder: Path, to: Path) -> Path:
    """Return a copy of an exported folder, which a test may break."""
    shutil.copytree(folder, to)
    return to
