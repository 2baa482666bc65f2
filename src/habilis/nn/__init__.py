"""F2: networks, distributions, normalisers: parts that know nothing of reinforcement learning's loops."""
