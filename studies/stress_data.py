"""Make a harder training part from prepared data: long utterances, and a few outliers with noise as features.

.venv/bin/python -m studies.stress_data --data-dir data/tiny --out data/tiny-stress [--longest 6] [--share 0.02] [--gain 5]
    [--seed 1]

The training utterances are shuffled and joined in groups of 1 to --longest, so that the amount of audio does not change.
A share of the joined utterances become outliers: they keep their text, but their features become normal noise with the
same mean and --gain times the standard deviation. Their ids begin with `outlier-`; OUT/outliers.txt lists them. Tokens, dev
and test parts are those of --data-dir. OUT has stored features only: train with features.type=precomputed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.corpus.corpus_yaml import load_corpus
from local.corpus.manifest_lines import write_manifest
from local.data.durations import FRAME_SECONDS, SPEED
from local.data.feature_store import Float16ArchiveWriter
from local.data.token_counts import UNUSABLE, counts_file, read_token_counts, write_token_counts

import numpy as np
from lhotse import CutSet
from lhotse.cut import MonoCut
from lhotse.utils import fastcopy

LISTING = "outliers.txt"
PREFIX = "outlier-"


def groups(cuts: Sequence[MonoCut], longest: int, rng: random.Random) -> Iterator[list[MonoCut]]:
    """Yield every cut once, in a shuffled order, 1 to `longest` at a time."""
    order = rng.sample(cuts, len(cuts))
    while order:
        size = rng.randint(1, longest)
        yield order[:size]
        order = order[size:]


def joined(cuts: Sequence[MonoCut], name: str, matrix: np.ndarray, writer: Float16ArchiveWriter) -> MonoCut:
    """Return one cut without audio, with the features `matrix` (T, F) and the texts of `cuts` in their order."""
    frames = len(matrix)
    duration = round(frames * FRAME_SECONDS, 3)
    texts = [cut.supervisions[0].text or "" for cut in cuts]
    span = {"recording_id": name, "start": 0.0, "duration": duration}
    text = " ".join(filter(None, texts))
    supervision = fastcopy(cuts[0].supervisions[0], id=name, text=text, alignment=None, **span)
    features = fastcopy(
        cuts[0].features,
        num_frames=frames,
        **span,
        storage_path=writer.storage_path,
        storage_key=writer.write(name, matrix),
    )
    return MonoCut(name, 0.0, duration, 0, supervisions=[supervision], features=features)


def noise_like(matrix: np.ndarray, gain: float, rng: np.random.Generator) -> np.ndarray:
    """Return normal noise (T, F) with the mean of `matrix` (T, F) and `gain` times its standard deviation."""
    return rng.normal(matrix.mean(), gain * matrix.std(), matrix.shape).astype(np.float32)


def stress_part(source: Path, target: Path, longest: int, share: float, gain: float, seed: int) -> list[str]:
    """Write the manifest `target` and its archive from the manifest `source`; returns the ids of the spoilt utterances.

    Beside it the joined utterances' token counts, by every lang_* of the source. Cuts excluded by any stay out.
    """
    files = [counts_file(lang, source.name.removesuffix(".jsonl.gz")) for lang in source.parents[1].glob("lang_*")]
    counts = {file.relative_to(source.parents[1]): read_token_counts(file) for file in files}
    cuts = [cut for cut in CutSet.from_jsonl_lazy(source) if SPEED not in (cut.custom or {})]
    cuts = [cut for cut in cuts if all(of_lang[cut.id] != UNUSABLE for of_lang in counts.values())]
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    parts = list(groups(sorted(cuts, key=lambda cut: cut.id), longest, rng))
    outliers = set(rng.sample(range(len(parts)), round(share * len(parts))))
    target.parent.mkdir(parents=True, exist_ok=True)
    made, joined_counts = [], {file: {} for file in counts}  # type: ignore[var-annotated]
    with Float16ArchiveWriter(target.with_name(target.name.removesuffix(".jsonl.gz") + ".f16").resolve()) as writer:
        for i, part in enumerate(parts):
            matrix = np.concatenate([cut.load_features() for cut in part])
            name = f"{part[0].id}-{len(part)}"
            if i in outliers:
                matrix, name = noise_like(matrix, gain, noise), PREFIX + name
            made.append(joined(part, name, matrix, writer))
            for file, of_lang in counts.items():
                joined_counts[file][name] = sum(of_lang[cut.id] for cut in part)
    write_manifest(target, made)
    for file, of_joined in joined_counts.items():
        write_token_counts(of_joined, target.parents[1] / file)
    return [cut.id for cut in made if cut.id.startswith(PREFIX)]


def stress_data(data_dir: Path, out: Path, longest: int, share: float, gain: float, seed: int) -> list[str]:
    """Write the folder `out`; return the ids of the outliers.

    Raises:
        UserError: data_dir has no stored features, a training part is a dev or test part, or `out` exists.
    """
    corpus = load_corpus(data_dir / "corpus.yaml")
    if out.exists():
        raise UserError(f"{out} already exists; remove it or choose another --out")
    for part in corpus.parts():
        manifest = data_dir / "features" / f"{part}.jsonl.gz"
        if not manifest.is_file():
            raise UserError(f"{manifest} is missing; stage 4 of prepare.sh makes it with features.type=precomputed")
    mixed = set(corpus.train) & {*corpus.dev, *corpus.test}
    if mixed:
        raise UserError(f"{data_dir}: {', '.join(sorted(mixed))} must not be a training part and a dev or test part")
    outliers: list[str] = []
    for lang in data_dir.glob("lang_*"):
        shutil.copytree(lang, out / lang.name)
    for part in corpus.train:
        source, target = (folder / "features" / f"{part}.jsonl.gz" for folder in (data_dir, out))
        outliers += stress_part(source, target, longest, share, gain, seed)
    for part in dict.fromkeys(corpus.dev + corpus.test):
        for kind in ("features", "cuts"):
            (out / kind).mkdir(exist_ok=True)
            shutil.copy(data_dir / kind / f"{part}.jsonl.gz", out / kind)
    (out / LISTING).write_text("".join(f"{name}\n" for name in outliers), encoding="utf-8")
    shutil.copy(data_dir / "corpus.yaml", out)  # last: without it the folder does not count as prepared
    return outliers


@program
def main() -> None:
    """Make the folder --out."""
    parser = make_parser(__doc__, conf=False, data_dir=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, such as data/tiny-stress")
    parser.add_argument("--longest", type=int, default=6, help="largest number of utterances joined to one (6)")
    parser.add_argument("--share", type=float, default=0.02, help="share of the joined utterances that are outliers (0.02)")
    parser.add_argument("--gain", type=float, default=5.0, help="standard deviation of the noise / that of the features (5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of groups, outliers and noise (1)")
    args = parser.parse_args()
    if args.longest < 1 or not 0 <= args.share <= 1 or args.gain <= 0:
        raise UserError("--longest must be at least 1, --share from 0 to 1, --gain above 0")
    outliers = stress_data(args.data_dir, args.out, args.longest, args.share, args.gain, args.seed)
    print(f"{args.out}: {len(outliers)} outliers, listed in {args.out / LISTING}")


if __name__ == "__main__":
    main()
