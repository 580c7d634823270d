"""Device cards from measured devices."""
