"""The only place that touches ctypes and llama_cpp; everything above it is plain Python.

`library` finds and loads the shared libraries, `quantize` wraps the row kernels, `runtime` the model, context and samplers.
"""
