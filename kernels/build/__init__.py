"""Build: compile C++ and load Triton kernels, through a cache that all processes of a user share."""

if __name__ != "baoc_compile.kernels.build":  # a second copy would have other classes
    raise ImportError("import it as baoc_compile.kernels.build")
