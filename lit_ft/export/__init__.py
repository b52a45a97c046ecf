"""Files that work without lit_ft: ONNX and torch.export with the preprocessing inside, weights for libraries."""
