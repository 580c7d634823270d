"""The chip as an instrument: a simulated die behind converters, a server for it, a client for any."""
