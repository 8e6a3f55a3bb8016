"""Pictures to pixel values: reading, resizing, cropping, normalising."""
