"""Models that read text and images: LLaVA, Qwen2.5-VL and InternVL, as Transformers has them.

Each is a vision tower, a projector from its features to the width of the words, and a language model in whose input
the features stand in the places of image tokens.
"""
