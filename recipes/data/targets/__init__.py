"""What is predicted from an image: labels, lists of labels, masks, boxes."""
