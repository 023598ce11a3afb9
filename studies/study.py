"""Measure and train small models that show how gradients vanish and explode; `./run.sh study` runs it.

.venv/bin/python -m studies.study [--conf FILE] --data-dir data/tiny --exp-dir exp/tiny [--sections norms,optimisers]
    [key.sub=value ...]

It writes EXP/study/study.html, with every plot as PNG and every number as CSV in the same folder.
"""

from __future__ import annotations

import time

from local.common.cli import choose_device, make_parser, program
from local.common.errors import UserError
from local.common.html_page import Page
from local.common.locks import reads, writes
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
    """Return the sections of the comma-separated list `text`, in the page's order.

    Raises:
        UserError: a section does not exist.
    """
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise UserError(f"--sections: unknown section '{unknown[0]}'; choose from {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


@program
def main() -> None:
    """Run the sections and write the page."""
    parser = make_parser(__doc__, data_dir=True, exp_dir=True)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated list (default: %(default)s)")
    args = parser.parse_intermixed_args()
    writes(args.exp_dir, new=True)
    reads(args.data_dir)
    cfg = load_config(args.conf, args.overrides)
    sections = chosen(args.sections)
    choose_device(cfg.train.num_threads)  # for its threads; the study runs on the CPU
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
