"""The dialect: the operations that rules and codecs are written in, and what all lowerings of them share."""

if __name__ != "baoc_compile.kernels.dialect":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.dialect")
