"""Device technologies as cards."""

from circuitsim.devices.card import DeviceCard, ideal_card, load_card

__all__ = ["DeviceCard", "ideal_card", "load_card"]
