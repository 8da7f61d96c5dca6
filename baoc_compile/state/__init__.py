"""Optimizer state as it is stored: tensors that hold codes, the entries of `optimizer.state`, plans and requests."""
