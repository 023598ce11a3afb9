"""numba is optional, and importing the model does not load it."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT

import pytest

PROGRAM = """
import sys

sys.modules.update(dict.fromkeys(sys.argv[1:]))  # importing these fails
sys.path.insert(0, "tests/search")

import json
from model.search import STREAMS, get_search
from model.search.graph import trivial_graph
from toy import small_config, toy_batch, toy_model

import torch

loaded = "numba" in sys.modules and sys.modules["numba"] is not None
model = toy_model(0).train()
model.encoder.train()
for module in model.modules():
    if hasattr(module, "p"):
        module.p = 0.0  # each way draws its own numbers for dropout
torch.manual_seed(0)
batch = torch.randn(3, 60, 80), torch.tensor([60, 50, 41]), torch.randint(3, 12, (3, 4)), torch.tensor([4, 2, 0])
losses = model(*batch, warmup=2.0)
sum(loss.sum() for loss in losses.values()).backward()
norms = {name: float(p.grad.norm()) for name, p in model.named_parameters()}
model.eval()
out, lens = toy_batch(1)
found = {name: [h.tokens for h in get_search(name)(model, out, lens)] for name in STREAMS}
try:
    get_search("fast_beam_search")(model, out, lens, graph=trivial_graph(12))
    error = None
except ImportError as e:
    error = str(e)
print(json.dumps({"loaded": loaded, "losses": losses["pruned"].tolist(), "norms": norms, "found": found, "error": error}))
"""


def results(*blocked: str) -> dict:
    run = subprocess.run([sys.executable, "-c", PROGRAM, *blocked], cwd=ROOT, text=True, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_same_numbers_without_numba() -> None:
    pytest.importorskip("numba")
    with_numba, without = results(), results("numba")
    assert not with_numba["loaded"] and not without["loaded"]
    assert without["losses"] == pytest.approx(with_numba["losses"], rel=1e-5)
    assert without["norms"] == pytest.approx(with_numba["norms"], rel=1e-3, abs=1e-5)
    assert without["found"] == with_numba["found"]
    assert with_numba["error"] is None and "numba" in without["error"]
