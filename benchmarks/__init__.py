"""One file per figure: each measures, compares with its limit, and writes out/bench/NAME.json."""
