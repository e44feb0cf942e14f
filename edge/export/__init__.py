"""Recordings for others to look at: folders of images, and videos."""
