"""Images and clips with captions, for models that draw what a text says."""
