"""Models from the Hugging Face hub: names, the shared cache on disk, and the download.

`names` and `cache` need no network and nothing beyond the standard library, so that `run NAME` works on a board without
huggingface_hub; `session` and what builds on it do.
"""
