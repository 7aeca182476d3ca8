"""Training stages on Transformers' Trainer, resumable at any step they checkpoint."""
