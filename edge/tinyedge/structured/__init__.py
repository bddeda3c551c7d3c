"""Structured output: JSON schemas become grammars, and a grammar is checked before llama.cpp sees it."""
