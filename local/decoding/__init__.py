"""Decoding: from features to hypotheses, in batches and in streams."""
