"""What is predicted from an image: classes, masks, boxes."""
