"""Checkpoint to GGUF: reading, planning, quantizing and writing in one pass."""
