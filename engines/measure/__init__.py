"""How fast, how large, and how near to the machine's own limit: what `bench` and the benchmarks share."""
