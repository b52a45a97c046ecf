"""Images from files: decoding, transforms, the cache of resized photos, verification."""
