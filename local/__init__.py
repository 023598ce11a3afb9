"""Files, processes and command lines: one program per stage."""
