"""Codecs: one file for each. They are the specification, the reference and, traced once, the device code."""

if __name__ != "baoc_compile.kernels.codecs":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.codecs")
