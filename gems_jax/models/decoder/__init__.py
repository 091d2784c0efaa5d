"""Decoders: Llama, Qwen, Mistral."""
