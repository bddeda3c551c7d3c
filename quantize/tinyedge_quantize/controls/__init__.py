"""What a person may change about a quantization beside its type: llama-quantize's options."""
