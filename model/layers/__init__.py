"""Building blocks of the model."""
