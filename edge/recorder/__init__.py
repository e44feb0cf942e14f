"""The recorder: what a line sees and says, written down within a bound of disk, and never in anybody's way."""
