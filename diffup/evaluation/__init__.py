"""From images to counts: encoding, prior maps, evaluation, metrics and foreign methods."""
