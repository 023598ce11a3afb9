"""The language model: against loops in float64, against its own steps, and trained on a language of known entropy."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from local import train_lm
from local.artifacts.checkpoint import load_file, save_file
from local.artifacts.language_model import load_lm
from local.common.errors import UserError
from local.data.tokenizer import Tokenizer, train_tokenizer
from local.lm_sample import main as lm_sample
from local.lm_sample import sample
from local.ngram import main as ngram
from local.training.lm_text import TokenText
from model.lm import LstmLm

import numpy as np
import pytest
import torch
from lhotse import SupervisionSegment, SupervisionSet

# Sixteen equally likely sentences: no model can have a loss below log(16) nats per sentence.
LANGUAGE = [f"{a} {b}" for a, b in itertools.product(("RED", "GREEN", "BLUE", "WHITE"), ("DOOR", "LAMP", "FAN", "CAR"))]
SMALL = "lm.dim=32 lm.hidden=32 lm.num_layers=1 lm.dropout=0.0 lm.batch_tokens=200 lm.lr=0.02 lm.max_epochs=12".split()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: a second one only slows models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(dim: int = 5, hidden: int = 7, num_layers: int = 2, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
    torch.manual_seed(dim + 10 * hidden + 100 * num_layers)
    model = LstmLm(9, dim, hidden, num_layers, dropout).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return model.to(dtype)


def reference_log_probs(model: LstmLm, context: list[int]) -> np.ndarray:
    """Log-probabilities (C,) of the token after <sos/eos> and `context`, cell by cell."""
    w = {name: p.detach().double().numpy() for name, p in model.state_dict().items()}
    layers, cells = model.lstm.num_layers, model.lstm.hidden_size
    h = [[0.0] * cells for _ in range(layers)]
    c = [[0.0] * cells for _ in range(layers)]
    for token in [1, *context]:
        x = list(w["embedding.weight"][token])
        for k in range(layers):
            into, back = w[f"lstm.weight_ih_l{k}"], w[f"lstm.weight_hh_l{k}"]
            bias = w[f"lstm.bias_ih_l{k}"] + w[f"lstm.bias_hh_l{k}"]
            new = []
            for j in range(cells):
                gates = []  # input, forget, candidate, output
                for row in (j, cells + j, 2 * cells + j, 3 * cells + j):
                    total = bias[row] + sum(a * b for a, b in zip(into[row], x, strict=True))
                    gates.append(total + sum(a * b for a, b in zip(back[row], h[k], strict=True)))
                i, f, o = (1 / (1 + math.exp(-gates[g])) for g in (0, 1, 3))
                c[k][j] = f * c[k][j] + i * math.tanh(gates[2])
                new.append(o * math.tanh(c[k][j]))
            h[k] = x = new
    logits = [
        b + sum(a * v for a, v in zip(row, x, strict=True)) for row, b in zip(w["output.weight"], w["output.bias"], strict=True)
    ]
    return np.array(logits) - math.log(sum(math.exp(v) for v in logits))


def reference_nll(model: LstmLm, sentence: list[int]) -> float:
    return -sum(reference_log_probs(model, sentence[:u])[y] for u, y in enumerate([*sentence, 1]))


@pytest.mark.parametrize(("dim", "hidden", "num_layers"), [(5, 7, 2), (6, 6, 1)])
def test_loss_equals_the_loops(dim: int, hidden: int, num_layers: int) -> None:
    sentences = [[3, 8, 2, 4], [], [5, 5]]
    model = make_model(dim, hidden, num_layers)
    tokens = torch.tensor([s + [-1] * (6 - len(s)) for s in sentences])
    nll = model(tokens, torch.tensor([len(s) for s in sentences]))
    expected = [reference_nll(model, s) for s in sentences]
    torch.testing.assert_close(nll, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert (model.output.weight is model.embedding.weight) == (dim == hidden)
    single = make_model(dim, hidden, num_layers, dtype=torch.float32)(tokens, torch.tensor([4, 0, 2]))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), nll, rtol=1e-5, atol=0)


def test_padding_changes_nothing() -> None:
    model = make_model(dropout=0.5)
    lens = torch.tensor([3, 1])
    short = torch.tensor([[3, 4, 5], [6, 0, 0]])
    nll = model(short, lens)
    for padding in (0, 8, -100):
        padded = torch.full((2, 5), padding)
        padded[0, :3], padded[1, 0] = short[0], 6
        assert torch.equal(model(padded, lens), nll)
    alone = torch.cat([model(short[:1], lens[:1]), model(short[1:, :1], lens[1:])])
    torch.testing.assert_close(alone, nll, rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="token_lens"):
        model(short, lens[:1])


def test_steps_equal_the_loss_also_when_hypotheses_are_chosen() -> None:
    model = make_model(dropout=0.5)
    sentences = torch.tensor([[3, 8, 2, 4], [5, 6, 7, 7]])
    state = model.init_state(2, "cpu")
    last, total = torch.tensor([1, 1]), torch.zeros(2, dtype=torch.float64)
    kept = state
    for u, y in enumerate([*sentences.unbind(1), torch.tensor([1, 1])]):
        log_probs, state = model.step(last, state)
        expected = np.stack([reference_log_probs(model, s[:u]) for s in sentences.tolist()])
        np.testing.assert_allclose(log_probs.detach().numpy(), expected, rtol=1e-12)
        total, last = total - log_probs.gather(1, y[:, None])[:, 0], y
        kept = state if u == 1 else kept
    torch.testing.assert_close(total, model(sentences, torch.tensor([4, 4])), rtol=1e-13, atol=0)
    rows = torch.tensor([1, 0, 1])
    log_probs, _ = model.step(torch.tensor([7, 3, 4]), tuple(s[rows] for s in kept))
    expected = np.stack([reference_log_probs(model, context) for context in ([5, 7], [3, 3], [5, 4])])
    np.testing.assert_allclose(log_probs.detach().numpy(), expected, rtol=1e-12)
    assert make_model(dtype=torch.float32).step(last, model.float().init_state(2, "cpu"))[0].dtype == torch.float32


def test_sampling_follows_the_temperature() -> None:
    """Temperatures 0 and nearly 0 take the likeliest token; above, the first tokens are as frequent as the softmax says."""
    model = make_model(6, 6, 2, dtype=torch.float32)
    greedy: list[int] = []
    while len(greedy) < 12:
        best = int(np.argmax(reference_log_probs(model, greedy)[1:])) + 1
        if best == 1:
            break
        greedy.append(best)
    assert greedy
    for temperature in (0.0, 1e-6):
        drawn = sample(model, 3, temperature, torch.Generator().manual_seed(0), max_tokens=12)
        assert drawn == [greedy] * 3
    for temperature in (0.5, 1.0, 2.0):
        num = 20000
        drawn = sample(model, num, temperature, torch.Generator().manual_seed(1), max_tokens=1)
        counts = np.bincount([d[0] if d else 1 for d in drawn], minlength=9) / num
        weights = np.exp(reference_log_probs(model, []) / temperature)
        weights[0] = 0.0
        expected = weights / weights.sum()
        assert counts[0] == 0 and np.all(np.abs(counts - expected) < 4 * np.sqrt(expected / num) + 1e-9)


def make_data(folder: Path, train: list[str], dev: list[str]) -> Path:
    """Write the files of prepare.sh that the stage reads."""
    (folder / "lang_bpe_500").mkdir(parents=True)
    (folder / "manifests").mkdir()
    (folder / "corpus.yaml").write_text("name: test\nsource: custom\ntrain: [tr]\ndev: [dv]\ntest: []\n")
    (folder / "lang_bpe_500" / "transcript.txt").write_text("".join(t + "\n" for t in train))
    (folder / "lang_bpe_500" / "bpe.model").write_bytes(train_tokenizer(LANGUAGE * 3, 40).model)
    segments = [SupervisionSegment(f"u{i}", f"u{i}", 0, 1, text=t) for i, t in enumerate(dev)]
    SupervisionSet.from_segments(segments).to_file(folder / "manifests" / "supervisions_dv.jsonl.gz")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", LANGUAGE * 12, LANGUAGE)


def train(data: Path, exp: Path, *overrides: str) -> None:
    train_lm.main(["--data-dir", str(data), "--exp-dir", str(exp), *SMALL, *overrides])


def log(exp: Path) -> list[dict[str, float]]:
    with (exp / "lm" / "log.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_the_bigram_is_estimated_from_the_transcripts_alone(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("BLUE BLUE BLUE\n" * 5)
    train(data, tmp_path / "exp", "lm.max_epochs=1", f"lm.text={own}")
    ngram(["--text", str(data / "lang_bpe_500" / "transcript.txt"), "--out", str(tmp_path / "expected.arpa")])
    assert (tmp_path / "exp" / "lm" / "bigram.arpa").read_text() == (tmp_path / "expected.arpa").read_text()


def test_training_finds_the_entropy_of_the_language(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "exp", "lm.max_epochs=40", "lm.lr=0.01", "lm.patience=4")
    rows = log(tmp_path / "exp")
    report = json.loads((tmp_path / "exp" / "lm" / "perplexity.json").read_text())
    nll = report["dev"]["nll"] / 16
    assert math.log(16) - 1e-3 < nll < math.log(16) + 0.1 < rows[0]["dev_nll"] / 16
    assert nll * 16 == pytest.approx(min(row["dev_nll"] for row in rows), rel=1e-12)
    assert report["dev"]["words"] == 32 and report["dev"]["unknown"] == 0
    assert report["dev"]["perplexity"]["per_word"] == pytest.approx(math.exp(nll / 3))
    # The model in the file has the reported loss, sentence by sentence.
    model, tokenizer = load_lm(tmp_path / "exp" / "lm" / "lm.pt", Tokenizer.from_file(data / "lang_bpe_500" / "bpe.model"))
    assert not model.training
    encoded = tokenizer.encode(LANGUAGE)
    losses = [reference_nll(model, ids) for ids in encoded]
    assert sum(losses) == pytest.approx(report["dev"]["nll"], rel=1e-5)
    tokens = sum(len(ids) + 1 for ids in encoded)
    assert report["dev"]["perplexity"]["per_token"] == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-5)


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    """Trained on 12 of the 16 sentences, the model learns to exclude the others: the dev perplexity rises again."""
    data = make_data(tmp_path / "data", [s for i, s in enumerate(LANGUAGE) if i % 5] * 12, LANGUAGE)
    train(data, tmp_path / "exp", "lm.max_epochs=40", "lm.patience=3")
    losses = [row["dev_nll"] for row in log(tmp_path / "exp")]
    best = int(np.argmin(losses))
    assert 0 < best and len(losses) == best + 1 + 3 < 40
    report = json.loads((tmp_path / "exp" / "lm" / "perplexity.json").read_text())
    assert (report["epoch"], report["epochs"]) == (best + 1, len(losses))
    model, tokenizer = load_lm(tmp_path / "exp" / "lm" / "lm.pt")
    assert sum(reference_nll(model, ids) for ids in tokenizer.encode(LANGUAGE)) == pytest.approx(losses[best], rel=1e-5)


def test_same_seed_same_model_also_when_resumed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = ["lm.max_epochs=4", "lm.dropout=0.3"]
    for name in ("whole", "again"):
        train(data, tmp_path / name, *short)
    train(data, tmp_path / "parts", *short, "lm.max_epochs=1")
    train(data, tmp_path / "parts", *short)
    assert f"{tmp_path / 'parts' / 'lm' / 'last.pt'}: 1 epochs" in capsys.readouterr().out
    train(data, tmp_path / "other", *short, "train.seed=7")
    whole = load_file(tmp_path / "whole" / "lm" / "last.pt")["model"]
    for name in ("again", "parts", "other"):
        weights = load_file(tmp_path / name / "lm" / "last.pt")["model"]
        assert all(torch.equal(whole[k], weights[k]) for k in whole) == (name != "other")
        assert (log(tmp_path / name) == log(tmp_path / "whole")) == (name != "other")
    # With other settings nothing of the old run is left in the new one.
    train(data, tmp_path / "other", *short)
    assert f"{tmp_path / 'other' / 'lm' / 'last.pt'} was made with" in capsys.readouterr().out
    assert log(tmp_path / "other") == log(tmp_path / "whole")


def test_a_damaged_state_is_trained_again(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(data, tmp_path / "exp", "lm.max_epochs=2")
    rows = log(tmp_path / "exp")
    (tmp_path / "exp" / "lm" / "last.pt").write_bytes(b"no checkpoint")
    train(data, tmp_path / "exp", "lm.max_epochs=2")
    assert f"warning: {tmp_path / 'exp' / 'lm' / 'last.pt'}" in capsys.readouterr().err
    assert log(tmp_path / "exp") == rows


def test_batches_hold_every_sentence_once() -> None:
    lens = np.random.default_rng(0).integers(0, 12, 300)
    text = TokenText(np.arange(lens.sum(), dtype=np.int32), lens, words=0, unknown=0)
    drawn = [text.batches(40, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert [b.tolist() for b in drawn[0]] == [b.tolist() for b in drawn[1]] != [b.tolist() for b in drawn[2]]
    for batches in (*drawn, text.batches(40), text.batches(5)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(300))
        limit = 5 if len(batches) > 250 else 40
        assert all(len(b) * (lens[b].max() + 1) <= limit or len(b) == 1 for b in batches)
    tokens, token_lens = text.collate(np.array([7, 3]))
    for row, number in enumerate((7, 3)):
        start = lens[:number].sum()
        assert tokens[row, : token_lens[row]].tolist() == list(range(start, start + lens[number]))


def test_a_text_of_ones_own(data: Path, tmp_path: Path) -> None:
    """lm.text, plain or compressed, with empty lines, other line ends, in another form, trains as the transcripts."""
    messy = "\r\n\r\n".join(LANGUAGE * 12).lower().replace("e", "\u00adｅ").replace(" ", "\u200b") + "\r\n"
    (tmp_path / "own.txt").write_bytes(messy.encode())
    with gzip.open(tmp_path / "own.txt.gz", "wt", encoding="utf-8") as file:
        file.write(messy)
    train(data, tmp_path / "transcript", "lm.max_epochs=1")
    for name in ("own.txt", "own.txt.gz"):
        train(data, tmp_path / name.replace(".", "_"), "lm.max_epochs=1", f"lm.text={tmp_path / name}")
        assert log(tmp_path / name.replace(".", "_")) == log(tmp_path / "transcript")


def test_a_text_of_one_word(data: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("RED")
    train(data, tmp_path / "exp", "lm.max_epochs=1", f"lm.text={tmp_path / 'own.txt'}")
    assert all(np.isfinite(value) for row in log(tmp_path / "exp") for value in row.values())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"'lm\.text'.*none\.txt"),
        ("empty.txt", b"\n \n", r"empty\.txt: "),
        ("latin.txt", b"RED D\xd6\xd6R\n", r"latin\.txt:1: .*UTF-8.* byte 6"),
        ("plain.gz", b"RED DOOR\n", r"plain\.gz: .*gzip"),
        ("short.gz", gzip.compress(b"RED DOOR\n" * 99, mtime=0)[:-9], r"short\.gz: .*gzip"),
        ("other.txt", "röd dörr\nblå fan\nRED FAN\n".encode(), r"other\.txt: .* 'Ö' in 'RÖD DÖRR'"),
        ("line.txt", b"RED DOOR " * 3000, r"line\.txt: 'RED .*\d+ tokens"),
    ],
)
def test_a_wrong_text_stops_with_one_line(
    data: Path, capsys: pytest.CaptureFixture, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (data / name).write_bytes(content)
    with pytest.raises(SystemExit) as e:
        train(data, data / "exp", f"lm.text={data / name}")
    error = capsys.readouterr().err
    assert e.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error)


def test_missing_and_foreign_files_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(data, tmp_path / "exp", "lm.max_epochs=1")
    path = tmp_path / "exp" / "lm" / "lm.pt"
    with pytest.raises(UserError, match=r"lm\.pt: .*\d+ tokens"):
        load_lm(path, train_tokenizer(["RED FAN", "BLUE CAR"] * 5, 20))
    with pytest.raises(UserError, match=r"none\.pt"):
        load_lm(tmp_path / "none.pt")
    save_file({"model": {}, "config": {}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: .*stage 3"):
        load_lm(tmp_path / "other.pt")
    with pytest.raises(SystemExit):
        train(data, tmp_path / "exp", "lm.lr=1e30")
    assert "epoch 1 is infinite; lower 'lm.lr'" in capsys.readouterr().err
    (data / "manifests" / "supervisions_dv.jsonl.gz").unlink()
    with pytest.raises(SystemExit):
        train(data, tmp_path / "exp")
    assert "supervisions_dv.jsonl.gz is missing" in capsys.readouterr().err


def test_sampled_sentences_belong_to_the_language(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train(data, tmp_path / "exp", "lm.max_epochs=15")
    capsys.readouterr()

    def drawn(*options: str) -> list[str]:
        lm_sample(["--lm", str(tmp_path / "exp" / "lm" / "lm.pt"), *options])
        return capsys.readouterr().out.splitlines()

    first = drawn("--num", "40", "--temperature", "0.7", "--seed", "1")
    assert len(first) == 40 and len(set(first)) > 5
    assert sum(sentence in LANGUAGE for sentence in first) >= 36
    assert drawn("--num", "40", "--temperature", "0.7", "--seed", "1") == first
    assert drawn("--num", "40", "--temperature", "0.7", "--seed", "2") != first
    assert len(set(drawn("--temperature", "0"))) == 1
    for option, value in (("--num", "0"), ("--temperature", "-1"), ("--temperature", "nan")):
        with pytest.raises(SystemExit):
            drawn(option, value)
        assert capsys.readouterr().err.startswith(f"error: {option}")
