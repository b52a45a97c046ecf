"""What is seen and kept of a run: predictions, TensorBoard, figures."""
