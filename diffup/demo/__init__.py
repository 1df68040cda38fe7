"""The web page of `diffup demo`: draw on supports, segment queries, swap the backbone."""
