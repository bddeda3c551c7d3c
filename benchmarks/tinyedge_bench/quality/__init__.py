"""How well a model predicts: perplexity, divergence from a base, questions with answers to choose from."""
