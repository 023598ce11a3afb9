"""Stage lang: training utterances whose tokens do not give their text back are listed, others of the kind are named."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from local.artifacts.checkpoint import provenance, tokenizer_in
from local.common.errors import UserError
from local.config import load_config
from local.corpus.dropped import Dropped
from local.data.token_counts import UNUSABLE
from local.data.tokenizer import lang_dir, train_tokenizer
from local.prepare_lang import count_tokens
from tests.conftest import ROOT

import pytest
import torch
from lhotse import MonoCut, SupervisionSegment
from lhotse.cut import Cut

LOST = {"block": "one\u2581two", "other": "on\u00fc"}
KEPT = {"plain": "one two", "special": "<blk> one <sos/eos> <unk>", "joiner": "on\u200ce tw\u200do", "fraction": "1\u20442"}


def cuts() -> list[Cut]:
    return [
        MonoCut(name, 0.0, 60.0, 0, [SupervisionSegment(name, name, 0.0, 60.0, text=text)])
        for name, text in {**LOST, **KEPT, "long": "one two " * 700 + "two"}.items()
    ]


def test_texts_that_do_not_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    long = cuts()[-1].supervisions[0].text
    tokenizer = train_tokenizer([*KEPT.values(), long] * 3, 100)
    dropped: list[Dropped] = []
    counts = count_tokens(cuts(), "train", True, tokenizer, dropped)
    assert [name for name, count in counts.items() if count == UNUSABLE] == [*LOST, "long"]  # the last has too many tokens
    kind = "characters outside the model"
    assert dropped[:2] == [Dropped("block", "train", kind, "\u2581"), Dropped("other", "train", kind, "\u00fc")]
    assert "tokens" in dropped[2].kind and "frames" in dropped[2].kind and len(dropped) == 3
    counts = count_tokens(cuts(), "dev", False, tokenizer, dropped)
    assert min(counts.values()) > 0 and len(dropped) == 3
    named = capsys.readouterr().out
    assert "block (\u2581)" in named and "other (\u00fc)" in named and not any(name in named for name in (*KEPT, "long"))


def test_tokens_of_another_model(tmp_path: Path) -> None:
    """They come from a bpe.model or from a checkpoint, whatever the transcripts are; other files are named."""
    tokenizer = train_tokenizer(["one two three"] * 3, 30)
    (tmp_path / "bpe.model").write_bytes(tokenizer.model)
    torch.save({"model": {}, **provenance(load_config(), tokenizer)}, tmp_path / "averaged.pt")
    torch.save({"model": {}}, tmp_path / "pretrained.pt")
    assert [tokenizer_in(tmp_path / name).tokens for name in ("bpe.model", "averaged.pt")] == [tokenizer.tokens] * 2
    (tmp_path / "text.txt").write_text("one two")
    for name in ("pretrained.pt", "text.txt", "absent.model"):
        with pytest.raises(UserError, match=name):
            tokenizer_in(tmp_path / name)
    lang = load_config(None, [f"lang.bpe_model={tmp_path}/bpe.model", "lang.vocab_size=80"]).lang
    assert lang_dir(tmp_path, lang).name == "lang_given"


@pytest.mark.parametrize("key", ["lang.vocab_size=80", "lang.type=char", "lang.bpe_model=my tokens/bpe.model"])
def test_the_scripts_and_the_programs_name_the_same_folder(key: str) -> None:
    print_keys = f"{sys.executable} -m local.config '{key}'"
    script = f"set -euo pipefail; cd {shlex.quote(str(ROOT))}; source local/stages.sh; config=$({print_keys}); name_tokens"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == load_config(None, [key]).lang.folder + "\n"
