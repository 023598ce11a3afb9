"""Check a configuration and print it: one line `section.key VALUE` per key, with VALUE as JSON.

    .venv/bin/python -m local.config --conf egs/tiny/conf/tiny.yaml optim.lr=0.01

An unknown key, a wrong type or an impossible value gives one line on stderr and exit status 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from local.common.cli import make_parser, program
from local.config.load import flat_lines, load_config


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    args = make_parser(__doc__).parse_args(argv)
    print("\n".join(flat_lines(load_config(args.conf, args.overrides))))


if __name__ == "__main__":
    main()
