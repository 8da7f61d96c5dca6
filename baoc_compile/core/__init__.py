"""Frozen data and types that every other layer uses. This layer imports no other."""
