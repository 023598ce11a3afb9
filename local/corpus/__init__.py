"""Where speech comes from: corpora in many forms, read, checked and synthesised."""
