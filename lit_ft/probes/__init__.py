"""What is solved on features: linear probes, and what their out-of-fold predictions show."""
