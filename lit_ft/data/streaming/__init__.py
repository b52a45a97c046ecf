"""Streaming datasets: chunks in a folder or bucket, and writing them."""
