"""Device technologies as cards, and what their devices do."""

from circuitsim.devices.card import (
    DeviceCard,
    card_names,
    find_card,
    ideal_card,
    load_card,
    merged_cards,
)

__all__ = ["DeviceCard", "card_names", "find_card", "ideal_card", "load_card", "merged_cards"]
