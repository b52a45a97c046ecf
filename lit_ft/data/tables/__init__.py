"""Tables of images: columns, labels, class names and splits."""
