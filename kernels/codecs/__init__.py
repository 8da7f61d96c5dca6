"""Codecs, one file per family. A codec is specification, reference and, traced once, device code."""

if __name__ != "baoc_compile.kernels.codecs":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.codecs")
