"""F5: the loops: collect, learn, evaluate, log, checkpoint."""
