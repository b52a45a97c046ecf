"""Predictions over HTTP: a server with batches and a page, on Lightning's LitServe."""
