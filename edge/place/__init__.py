"""Where a part lies in its frame, how that is found, and how large a pixel is there."""
