"""Tokens per second and what stands beside them: the sweeps of `tinyedge bench`."""
