"""Files: folders of images, IDX, and what is kept of them between runs."""
