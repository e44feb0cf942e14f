"""Actuators: what keeps every part that has no timely PASS out of the good bin, and the hardware it speaks to."""
