"""Measuring a substrate through its readings, and a simulated chip with what was measured."""
