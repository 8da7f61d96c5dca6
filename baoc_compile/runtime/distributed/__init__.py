"""Several processes that hold an optimizer's DTensors: how they decide, and what a step takes from them."""
