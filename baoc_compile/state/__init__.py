"""Optimizer state as baoc stores it: tensors that hold codes, the entries of `optimizer.state`, and plans."""
