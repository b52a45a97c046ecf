"""Raw values of the bands of images: reading at full depth, their statistics, and pictures of them."""
