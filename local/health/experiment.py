"""The doctor's checks of an experiment that has begun: its tokens, checkpoints, and whether it still learns."""

from __future__ import annotations

import csv
import math
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from local.artifacts.averaging import plain_range, running_ends
from local.artifacts.checkpoint import checkpoints
from local.common.atomic import abandoned
from local.common.errors import UserError, first_of
from local.common.text_files import is_file, read_yaml
from local.config import to_dict
from local.data.summary import Summary
from local.data.tokenizer import Tokenizer, lang_dir
from local.health.finding import Check, Finding, Run, error, warning
from local.health.sizes import recorded
from local.training.resume_checks import check_same_run

Rows = list[dict[str, float]]  # of train.csv or valid.csv; missing values are nan

FRAMES_PER_SECOND = 25.0  # of the encoder
FULL = 3  # times the warm-up, after which the pruned loss has had its full weight for a while
FEWEST_ROWS = 8  # in the last third of train.csv
FLAT = 0.06  # relative fall of the pruned loss within the last third
FAR = 1.0  # nats per token of the pruned loss; tiny ends at 0.03, a lost encoder of tiny stays at 1.4, the published at 0.4
GOOD_WER = 60.0  # percent: a training with a lower one has learnt something
LOST_WER = 95.0
STILL_FALLING = 5.0, 0.15  # percent, and a share of it: what the dev WER must have fallen by in the last epoch
SMALL_MASK, MANY_DAMPED = 0.5, 0.25
RISING, RISE = 3, 1.1  # validations in a row; times the lowest loss


def table(path: Path) -> Rows:
    """Return the rows of train.csv or valid.csv; none without the file. A number that cannot be read is nan."""
    if not is_file(path):
        return []
    try:
        with path.open(newline="", encoding="utf-8") as f:
            return [{str(name): number(value) for name, value in row.items()} for row in csv.DictReader(f)]
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: damaged ({e}); remove it to resume without its earlier rows") from None


def number(value: Any) -> float:
    """Return a cell's number; nan if it has none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def last_third(rows: Rows) -> Rows:
    """Return the rows of the last third of the batches."""
    end = rows[-1].get("step", math.nan) if rows else 0.0
    return [row for row in rows if row.get("step", math.nan) > end * 2 / 3]


def warm_batches(run: Run) -> float:
    """Return the batches of the warm-up; of a share of them, from the batches per epoch of valid.csv."""
    train, rows = run.config.train, table(run.exp_dir / "valid.csv")
    if train.warm_share == 0:
        return train.warm_step
    per_epoch = max((row["step"] / row["epoch"] for row in rows if row.get("epoch") and "step" in row), default=math.inf)
    return train.warm_share * min(per_epoch * train.num_epochs, train.max_steps or math.inf)


def after_warm_up(run: Run, name: str) -> Rows:
    """Return the rows of train.csv or valid.csv from which on the pruned loss counts."""
    start = FULL * warm_batches(run)
    return [row for row in table(run.exp_dir / name) if row.get("step", 0.0) > start]


def check_tokens(run: Run) -> Iterator[Finding]:
    """Yield tokens, a model or an optimiser other than those that the experiment was trained with."""
    path, lang = run.exp_dir / "config.yaml", lang_dir(run.data_dir, run.config.lang) / "bpe.model"
    if not is_file(path) or not is_file(lang):
        return
    content = read_yaml(path)
    made = content.pop("run", None) if isinstance(content, dict) else None
    if not isinstance(made, dict) or "tokens_hash" not in made:
        yield error(f"{path}: damaged: it has no run.tokens_hash", "remove it; training writes it again")
        return
    saved = {"tokens_hash": made["tokens_hash"], "config": content}
    check_same_run(
        saved, {"tokens_hash": Tokenizer.from_file(lang).hash, "config": to_dict(run.config)}, run.exp_dir / "checkpoints"
    )


def check_range(run: Run) -> Iterator[Finding]:
    """Yield a checkpoint that averaging needs and that is not there, once the training is done."""
    folder, average, train = run.exp_dir / "checkpoints", run.config.average, run.config.train
    epochs, steps = (max((n for n, _ in checkpoints(folder, kind)), default=0) for kind in ("epoch", "step"))
    if epochs < train.num_epochs and not 0 < train.max_steps <= steps:
        return
    (plain_range if average.mode == "plain" else running_ends)(folder, average)
    yield from ()


def check_checkpoints(run: Run) -> Iterator[Finding]:
    """Yield checkpoints that are cut off: a full disk or a copy that was stopped. Their ends tell; no weights are read."""
    folder = run.exp_dir / "checkpoints"
    paths = [path for kind in ("epoch", "step") for _, path in checkpoints(folder, kind)]
    if cut := [path.name for path in paths if not zipfile.is_zipfile(path) and path.exists()]:  # a training removes old ones
        fix = "remove them; training continues from the newest whole one, averaging needs all of its range"
        yield warning(f"{folder}: checkpoints are damaged: {first_of(cut, 3)}", fix)


def check_bad_steps(run: Run) -> Iterator[Finding]:
    """Yield the steps that the training skipped, because a loss or a gradient was not finite."""
    files = sorted((run.exp_dir / "bad").glob("step-*.pt"))
    steps = sorted({int(match[1]) for path in files if (match := re.match(r"step-(\d+)", path.name))})
    if steps:
        what = f"{run.exp_dir}/bad: {len(steps)} steps were skipped for a loss or gradient that is not finite (step "
        fix = "./run.sh diagnose names the layer and the utterances; lower optim.lr; then remove the folder"
        yield warning(f"{what}{first_of([str(step) for step in steps])})", fix)


def check_stalled(run: Run) -> Iterator[Finding]:
    """Yield a training whose pruned loss is flat over its last third, although it is far above that of a trained model."""
    rows = after_warm_up(run, "train.csv")
    losses = [row["pruned_loss"] for row in last_third(rows) if math.isfinite(row.get("pruned_loss", math.nan))]
    rate = tokens_per_second(run)
    if len(losses) < FEWEST_ROWS or rate <= 0:
        return
    first, second = median(losses[: len(losses) // 2]), median(losses[len(losses) // 2 :])
    per_token = second * FRAMES_PER_SECOND / rate
    wers = [row["wer"] for row in after_warm_up(run, "valid.csv") if math.isfinite(row.get("wer", math.nan))]
    if per_token > FAR and second > (1 - FLAT) * first and not (wers and min(wers) < GOOD_WER):
        what = (
            f"{run.exp_dir}/train.csv: the pruned loss does not fall in the last third of the training, at {second:.3g} nats "
        )
        fix = "lower optim.lr, set loss.am_scale=0.25, or raise train.warm_step; ./run.sh diagnose shows the gradients"
        yield warning(f"{what}per frame, {per_token:.1f} per token; trained models have less than {FAR:g}", fix)


def tokens_per_second(run: Run) -> float:
    """Return the tokens per second of the first training part; 0 if nobody knows."""
    content, tokens = Summary(run.data_dir).content, run.config.lang.tokens
    return next((n for part in run.parts if (n := recorded(content, "tokens", tokens, part, "per second")) > 0), 0.0)


def check_masks(run: Run) -> Iterator[Finding]:
    """Yield layers whose gradient filter damps most of the gradient."""
    rows = last_third(table(run.exp_dir / "train.csv"))
    if len(rows) < FEWEST_ROWS:
        return
    layers = sorted(int(name.rpartition("_")[2]) for name in rows[-1] if name.startswith("filter_median_mask_"))
    small = [i for i in layers if typical(rows, f"filter_median_mask_{i}") < SMALL_MASK]
    damped = [i for i in layers if typical(rows, f"filter_share_below_half_{i}") > MANY_DAMPED]
    if found := sorted({*small, *damped}):
        what = f"{run.exp_dir}/train.csv: the gradient filter damps much of the last third of the training"
        where = f"in layer{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"
        yield warning(f"{what} {where}", "raise gradient.threshold, lower optim.lr; outliers.tsv names the utterances")


def typical(rows: Rows, name: str) -> float:
    """Return the median of a column; nan without values."""
    values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
    return median(values) if values else math.nan


def check_overfitting(run: Run) -> Iterator[Finding]:
    """Yield a dev loss that rose in the last validations, while the dev WER did not fall."""
    rows = [row for row in after_warm_up(run, "valid.csv") if math.isfinite(row.get("pruned_loss", math.nan))]
    losses, wers = ([row.get(name, math.nan) for row in rows] for name in ("pruned_loss", "wer"))
    if len(losses) <= RISING or not rising(losses[-RISING - 1 :]) or losses[-1] < RISE * min(losses):
        return
    if wers[-1] <= min((wer for wer in wers if math.isfinite(wer)), default=-math.inf):
        return
    best = rows[losses.index(min(losses))].get("epoch", math.nan)
    rose = f"the dev loss rose in {RISING} validations, from {min(losses):.3g} in epoch {best:g} to {losses[-1]:.3g}"
    fix = f"set average.last={best:g}, train fewer epochs, or take a smaller model or more speech"
    yield warning(f"{run.exp_dir}/valid.csv: {rose}: the model overfits", fix)


def rising(values: Sequence[float]) -> bool:
    """Return whether each value is larger than the one before."""
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def check_dev_wer(run: Run) -> Iterator[Finding]:
    """Yield a dev WER of about 100 % in the last validations, long after the warm-up."""
    wers = [row["wer"] for row in after_warm_up(run, "valid.csv") if math.isfinite(row.get("wer", math.nan))]
    if len(wers) >= 2 and min(wers[-2:]) >= LOST_WER:
        what = f"{run.exp_dir}/valid.csv: the dev WER is still {wers[-1]:.0f} % after the warm-up"
        yield warning(what, "lower optim.lr, set loss.am_scale=0.25, or check that transcripts belong to their audio")


def check_unfinished(run: Run) -> Iterator[Finding]:
    """Yield a finished training whose dev WER still fell fast in its last epoch."""
    rows = [row for row in after_warm_up(run, "valid.csv") if math.isfinite(row.get("wer", math.nan))]
    if len(rows) < 2 or rows[-1].get("epoch", 0.0) < run.config.train.num_epochs:
        return
    before, last = rows[-2]["wer"], rows[-1]["wer"]
    least, share = STILL_FALLING
    if before - last > max(least, share * before):
        what = f"{run.exp_dir}/valid.csv: the dev WER still fell in the last epoch, from {before:.3g} to {last:.3g} %"
        yield warning(what, f"train longer: train.num_epochs={run.config.train.num_epochs * 3 // 2 + 1}")


def check_leftovers(run: Run) -> Iterator[Finding]:
    """Yield what killed programs left unfinished."""
    folders = {run.exp_dir, run.data_dir, *(p for top in (run.exp_dir, run.data_dir) for p in top.glob("*/") if p.is_dir())}
    folders |= {p for p in (run.exp_dir / "decode").glob("*/") if p.is_dir()}
    found = [path for folder in sorted(folders) for path in abandoned(folder, None)]
    if found:
        names = first_of([str(path) for path in found], 3)
        yield warning(f"killed programs left {len(found)} unfinished files or folders: {names}", "remove them")


CHECKS: tuple[Check, ...] = (
    check_tokens,
    check_range,
    check_checkpoints,
    check_bad_steps,
    check_stalled,
    check_masks,
    check_overfitting,
    check_dev_wer,
    check_unfinished,
    check_leftovers,
)
