"""Importance matrices: collected, read, written, and what they say."""
