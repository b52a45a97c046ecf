"""Data modules: folders, tables, arrays and streams of images."""
