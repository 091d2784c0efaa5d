"""General text and tokenizers."""
