"""What features and out-of-fold predictions tell about images and their labels."""
