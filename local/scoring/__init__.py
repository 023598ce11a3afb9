"""Scoring: word errors of decoded sets. Nothing here imports torch."""
