"""Examples; a package so that ``python -m examples.train_tiny`` finds this one and no other."""
