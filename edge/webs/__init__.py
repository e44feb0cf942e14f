"""Webs: frames that follow each other without a gap on one endless material; docs/webs.md says what that means."""
