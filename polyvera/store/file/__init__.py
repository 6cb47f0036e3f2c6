"""One adapter as one file of safetensors."""
