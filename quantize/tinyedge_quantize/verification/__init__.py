"""Whether a GGUF file can be trusted: what `tinyedge verify` checks."""
