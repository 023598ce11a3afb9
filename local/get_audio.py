"""Stage 0 of prepare.sh: bring a corpus's audio: synthesise (tiny) or download (librispeech, mini_librispeech, MUSAN).

Nothing is done for audio that is already there (--corpus-dir). A download that broke off goes on where it stopped; its
archive's checksum is verified as it is unpacked.
"""

from __future__ import annotations

import argparse
import tarfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

from local.common.cli import program
from local.common.errors import UserError
from local.config import load_config
from local.corpus.corpus_yaml import Corpus, load_corpus
from local.corpus.synthesis import synthesise

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, download_librispeech
from lhotse.recipes.musan import download_musan

PARTS = {"librispeech": LIBRISPEECH, "mini_librispeech": MINI_LIBRISPEECH}


def fetch(corpus: Corpus, out: Path, num_jobs: int) -> None:
    """Make `out` hold the corpus's parts. Raises `UserError` for a part that its source does not have."""
    if corpus.source == "custom":
        raise UserError(f"corpus '{corpus.name}' is your own: name its folder with --corpus-dir")
    if corpus.source == "tiny":
        stats = synthesise(out, seed=int(corpus.options.get("seed", 0)), nproc=num_jobs)
        for part, s in stats.items():
            print(f"{part}: {s.minutes:.1f} min, {s.utterances} utterances, {s.voices} voices, {len(s.words)} words")
        return
    known = PARTS[corpus.source]
    for part in corpus.parts():
        if part not in known:
            raise UserError(f"part '{part}' is none of {corpus.source}'s, which has {', '.join(known)}")
        download(f"part '{part}' of {corpus.source}", partial(download_librispeech, out, [part]), out)


def fetch_musan(folder: Path) -> None:
    """Download MUSAN where `folder` is called musan and is not there; `UserError` where it is called otherwise."""
    if folder.exists():
        return
    if folder.name != "musan":
        raise UserError(f"augment.musan={folder}: no such folder (one called musan would be downloaded)")
    download("MUSAN", partial(download_musan, folder.parent), folder.parent)


def download(what: str, run: Callable[[], object], where: Path) -> None:
    """Run a downloader; what may go wrong with the network or the archive becomes a `UserError`."""
    print(f"downloading {what} to {where}")
    try:
        run()
    except (tarfile.TarError, EOFError, zlib.error) as e:
        raise UserError(f"the archive of {what} in {where} is broken ({e}); remove it and start again") from None
    except (URLError, HTTPException, ConnectionError, TimeoutError) as e:
        raise UserError(f"cannot download {what}: {e}; the same command goes on where it stopped") from None


@program
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--corpus-yaml", type=Path, required=True)
    parser.add_argument("--corpus-dir", type=Path, help="audio that is already there")
    parser.add_argument("--out", type=Path, required=True, help="where to bring the audio without --corpus-dir")
    parser.add_argument("--conf", type=Path)
    parser.add_argument("--nproc", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="key.sub=value")
    args = parser.parse_args(argv)
    cfg = load_config(args.conf, args.overrides)
    if args.corpus_dir is None:
        fetch(load_corpus(args.corpus_yaml, cfg.data), args.out, args.nproc)
    if cfg.augment.musan is not None:
        fetch_musan(Path(cfg.augment.musan))


if __name__ == "__main__":
    main()
