"""The nouns: frozen data and types that every other layer uses. Nothing here imports another layer."""
