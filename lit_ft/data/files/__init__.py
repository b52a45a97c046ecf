"""Files: folders of images, tables, IDX, and what is kept of them between runs."""
