"""Recognise utterances by sherpa-onnx, in a process of its own: `python -m local.deploy JOB.json`; see local/deploy/sherpa.py.

It needs neither torch nor the recipe. A key that a graph lacks ends it without an exception.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Print a line of JSON for each array of samples: the tokens, and the times in seconds."""
    import sherpa_onnx

    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recogniser = sherpa_onnx.OnlineRecognizer.from_transducer(**job["recogniser"])
    rate = job["recogniser"]["sample_rate"]
    with np.load(job["samples"]) as samples:
        for name in samples.files:
            stream = recogniser.create_stream()
            stream.accept_waveform(rate, samples[name])
            stream.input_finished()
            while recogniser.is_ready(stream):
                recogniser.decode_stream(stream)
            result = recogniser.get_result_all(stream)
            print(json.dumps({"tokens": list(result.tokens), "times": list(result.timestamps)}), flush=True)


if __name__ == "__main__":
    main()
