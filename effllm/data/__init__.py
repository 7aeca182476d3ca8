"""Data: corpora, tokenizers and packed token files."""
