"""Targets to predict from images: labels, lists of labels, masks, boxes."""
