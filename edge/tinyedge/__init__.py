"""tinyedge: from a PyTorch checkpoint to tokens per second on a small device."""

__version__ = "0.1.0"
