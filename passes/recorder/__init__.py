"""Recorder: the mode that sees every call of torch while a step runs on stand-ins."""

if __name__ != "baoc_compile.passes.recorder":  # a second copy would define its classes twice
    raise ImportError("import it as baoc_compile.passes.recorder")
