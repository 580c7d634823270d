"""Boards of word and bit lines: real devices, computed neurons."""
