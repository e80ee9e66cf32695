"""Readable words of the synthetic world: what its items are called, and how their hidden traits show in their descriptions."""

from collections.abc import Sequence
from typing import Final

import numpy as np

TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "Cooking": ("Bread", "Noodles", "Spices", "Pastry", "Grilling", "Soups"),
    "Astronomy": ("Comets", "Galaxies", "Telescopes", "Planets", "Eclipses", "Rockets"),
    "Football": ("Penalties", "Goalkeepers", "Derbies", "Tactics", "Stadiums", "Transfers"),
    "Jazz": ("Saxophones", "Trios", "Swing", "Ballads", "Trumpets", "Improvisation"),
    "Gardening": ("Roses", "Orchards", "Compost", "Greenhouses", "Bonsai", "Hedges"),
    "History": ("Empires", "Castles", "Voyages", "Letters", "Revolutions", "Maps"),
    "Mystery": ("Detectives", "Alibis", "Ciphers", "Mansions", "Forgeries", "Witnesses"),
    "Comedy": ("Neighbours", "Weddings", "Offices", "Roommates", "Pranks", "Reunions"),
    "Travel": ("Islands", "Railways", "Deserts", "Markets", "Harbours", "Mountains"),
    "Technology": ("Robots", "Compilers", "Networks", "Sensors", "Batteries", "Satellites"),
    "Nature": ("Wolves", "Rivers", "Coral", "Forests", "Falcons", "Glaciers"),
    "Crafts": ("Pottery", "Knitting", "Woodwork", "Origami", "Leather", "Weaving"),
}
CATEGORIES: Final = tuple(TOPICS)
ADJECTIVES: Final = (
    "Quiet", "Golden", "Hidden", "Little", "Lost", "Northern", "Winter", "Open", "Painted", "Second", "Silver", "Simple", "Slow",
    "Strange", "Summer", "Tall", "Ten", "Velvet", "Wild", "Young", "Amber", "Brave", "Broken", "Clever", "Coastal", "Curious",
    "Distant", "Early", "Electric", "Famous", "Final", "Gentle", "Great", "Honest", "Iron", "Midnight", "Modern", "Narrow", "Perfect",
    "Restless",
)  # fmt: skip
PROVIDERS: Final = tuple(
    f"{first} {second}"
    for first in ("Harbour", "Lantern", "Meadow", "Summit", "Willow", "Copper")
    for second in ("Studio", "Press", "Channel", "House")
)
TRAIT_WORDS: Final = (
    ("brief", "compact", "detailed", "extensive"),
    ("calm", "gentle", "lively", "energetic"),
    ("playful", "light", "thoughtful", "serious"),
)
"""Words for the quarters of each hidden trait: length, energy, seriousness."""


def titles(topics: Sequence[str], rng: np.random.Generator) -> list[str]:
    """One title an item, all different: an adjective and the topic, numbered when the adjectives run out."""
    order = {topic: rng.permutation(len(ADJECTIVES)) for topic in dict.fromkeys(topics)}
    used = dict.fromkeys(order, 0)
    result = []
    for topic in topics:
        n = used[topic]
        used[topic] = n + 1
        part = "" if n < len(ADJECTIVES) else f", Part {n // len(ADJECTIVES) + 1}"
        result.append(f"{ADJECTIVES[order[topic][n % len(ADJECTIVES)]]} {topic}{part}")
    return result


def description(categories: Sequence[str], topic: str, second_topic: str, provider: str, quarters: Sequence[int]) -> str:
    """A sentence that tells topic, style and maker: `quarters` are the item's quarter of each trait."""
    length, energy, mood = (TRAIT_WORDS[t][q] for t, q in enumerate(quarters))
    about = topic.lower() if second_topic == topic else f"{topic.lower()} and {second_topic.lower()}"
    fields = " and ".join(categories).lower()
    article = "An" if length[0] in "aeiou" else "A"
    return f"{article} {length}, {energy} and {mood} look at {about}, for friends of {fields}. Made by {provider}."
