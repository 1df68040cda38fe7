"""What is segmented and with which supports: protocols, episodes, manifests and annotations."""
