"""What the demonstration needs: free photographs, a camera that moves over them, and defects painted into them."""

from __future__ import annotations
