"""The gradient study: studies/study.py --conf FILE --data-dir data/tiny --exp-dir exp/tiny [key.sub=value ...]

Measures and trains small models and writes EXP/study/study.html with every plot as PNG and every number as CSV beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from local.common.cli import program
from local.common.errors import UserError
from local.common.html_page import Page
from local.config import load_config
from studies import gradient_flow, norms, numpy_lstm, optimisers

import torch

# In the page's order
SECTIONS = {
    "gradient_flow": gradient_flow.section,
    "numpy_lstm": numpy_lstm.section,
    "norms": norms.section,
    "optimisers": optimisers.section,
}


def chosen(text: str) -> list[str]:
    """The sections named in `text`, with commas between, in the page's order. Raises UserError for unknown names."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise UserError(f"--sections: '{unknown[0]}' is none of {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


@program
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", help="YAML over conf/base.yaml")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--exp-dir", type=Path, required=True)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which to run, with commas between (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_intermixed_args()
    cfg = load_config(args.conf, args.overrides)
    sections = chosen(args.sections)
    if cfg.train.num_threads:
        torch.set_num_threads(cfg.train.num_threads)
    page = Page("Gradient study", args.exp_dir / "study")
    page.text(f"torch {torch.__version__}, threads: {torch.get_num_threads()}, seed {cfg.train.seed}, data: {args.data_dir}.")
    times = []
    for number, name in enumerate(sections, start=1):
        started = time.monotonic()
        SECTIONS[name](page, cfg, args.data_dir)
        times.append([name, f"{time.monotonic() - started:.0f}"])
        print(f"section {number} of {len(sections)}, {name}: {times[-1][1]} s", flush=True)
    page.heading("Times")
    page.table(["section", "seconds"], times)
    print(f"wrote {page.write('study')}", flush=True)


if __name__ == "__main__":
    main()
