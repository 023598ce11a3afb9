"""Files that one stage writes and another reads: checkpoints, language models, n-grams, graphs, tuned settings."""
