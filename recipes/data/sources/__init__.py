"""Sources of images: folders, tables, mask files, and generated images with a planted signal."""
