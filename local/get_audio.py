"""Stage 0 of prepare.sh: get a corpus's audio: synthesise (tiny) or download (librispeech, mini_librispeech, MUSAN).

Does nothing if the audio is already there (--corpus-dir). An interrupted download resumes where it stopped; the archive's
checksum is verified while unpacking.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from local.common.cli import make_parser, program
from local.common.errors import UserError
from local.common.locks import replaces
from local.config import load_config
from local.corpus.corpus_yaml import Corpus, load_corpus
from local.corpus.synthesis import synthesise

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech
from lhotse.recipes.musan import download_musan

PARTS = {"librispeech": LIBRISPEECH, "mini_librispeech": MINI_LIBRISPEECH}


def fetch(corpus: Corpus, out: Path, num_jobs: int) -> None:
    """Download or synthesise the corpus's parts in `out`. Raises `UserError` if its source does not have a part."""
    if corpus.source == "custom":
        raise UserError(f"corpus '{corpus.name}' is your own; name its folder with --corpus-dir")
    if corpus.source == "tiny":
        for part, stats in synthesise(out, seed=int(corpus.options.get("seed", 0)), num_jobs=num_jobs).items():
            print(f"{part}: {stats}")
        return
    known = PARTS[corpus.source]
    for part in corpus.parts():
        if part not in known:
            raise UserError(f"{corpus.source} has no part '{part}'; it has {', '.join(known)}")
        download(f"part '{part}' of {corpus.source}", partial(download_librispeech, out, [part]), out)


def fetch_musan(folder: Path) -> None:
    """Download MUSAN if `folder` is missing. Raises `UserError` if its name is not `musan`, the archive's folder."""
    if folder.exists():
        return
    if folder.name != "musan":
        raise UserError(f"augment.musan={folder}: no such folder; only a folder named 'musan' is downloaded")
    download("MUSAN", partial(download_musan, folder.parent), folder.parent)


def download(what: str, run: Callable[[], object], where: Path) -> None:
    """Run a downloader; errors of the network or the archive become a `UserError`."""
    print(f"downloading {what} to {where}")
    try:
        run()
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise UserError(f"the archive of {what} in {where} is damaged ({e}); remove it and start again") from None
    except (URLError, HTTPException, ConnectionError, TimeoutError) as e:
        raise UserError(f"cannot download {what}: {e}; run the same command again to resume") from None


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Get the audio of a corpus, and MUSAN if augment.musan asks for it."""
    parser = make_parser(__doc__)
    parser.add_argument("--corpus-yaml", type=Path, required=True, help="egs/<corpus>/corpus.yaml")
    parser.add_argument("--corpus-dir", type=Path, help="folder of audio that is already there")
    parser.add_argument("--out", type=Path, required=True, help="where to write the audio, without --corpus-dir")
    parser.add_argument("--nj", type=int, default=1, help="processes that synthesise (%(default)s)")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    if args.corpus_dir is None:
        replaces(args.out)
        fetch(load_corpus(args.corpus_yaml, cfg.data), args.out, args.nj)
    if cfg.augment.musan is not None:
        musan = Path(cfg.augment.musan)
        if not musan.exists():
            replaces(musan)
        fetch_musan(musan)


if __name__ == "__main__":
    main()
