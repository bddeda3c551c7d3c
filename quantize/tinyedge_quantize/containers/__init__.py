"""The files that tensors come in: safetensors and torch.save."""
