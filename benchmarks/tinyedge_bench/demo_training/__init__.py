"""Trains the demo checkpoint, for `tinyedge_bench.train_demo`.

The model is a dict of tensors under their Hugging Face names and one `forward` function, so what is trained is what is written.
`settings` and `books` need neither torch nor sentencepiece; everything else does.
"""
