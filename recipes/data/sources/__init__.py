"""Where images come from: folders, tables, mask files, images made up with a signal in them."""
