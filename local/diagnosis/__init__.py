"""Diagnosis: the module in which the gradient explodes, and the utterances that cause it."""
