"""What a model directory of somebody else's is: read from its files, and refused where the study cannot use it.

`check_directory` reads names, configuration and headers in milliseconds and without PyTorch; `inspect_model` builds the
model without memory for its weights and compares. Every refusal is a `UserError` of one sentence.
"""
