"""Sources of images: folders, tables and mask files."""
