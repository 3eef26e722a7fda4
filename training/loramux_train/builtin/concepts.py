"""What the built-in base can draw.

Takes nothing; gives the list of concepts (caption noun, icon name), the styles they come in and the split between
concepts a style adapter sees and concepts it never sees. Knows no pictures and no tensors.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Concept:
    """A noun as captions say it, and the icon that shows it."""

    name: str
    icon: str


@dataclass(frozen=True, slots=True)
class Style:
    """One artist's way of drawing every concept: an npm package of icons."""

    name: str
    package: str
    version: str
    licence: str


FLAT = Style("flat", "@iconify-json/fluent-emoji-flat", "1.2.6", "MIT")
GLOSSY = Style("glossy", "@iconify-json/fluent-emoji", "1.2.7", "MIT")
INK = Style("ink", "@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT")
NOTO = Style("noto", "@iconify-json/noto", "1.2.9", "Apache-2.0")
STYLES = (FLAT, GLOSSY, INK, NOTO)

# caption noun -> icon name where they differ; ordered so that every third concept, held out of style adapters,
# is a fair sample of food, animals, nature and things
_NOUNS = """
red apple; banana; strawberry; watermelon; pineapple; cherry=cherries; lemon; pear; carrot; eggplant; mushroom;
avocado; pretzel; hamburger; pizza; donut=doughnut; cupcake; ice cream=soft-ice-cream;
dog=dog-face; cat=cat-face; rabbit=rabbit-face; fox; panda; frog; pig=pig-face; lion; penguin; owl; octopus; crab;
whale; butterfly; ladybug=lady-beetle; turtle; fish=tropical-fish;
cactus; sunflower; tulip; tree=deciduous-tree; pine tree=evergreen-tree; sun; moon=crescent-moon; star; rainbow; fire;
snowman;
house; rocket; sailboat; car=automobile; balloon; gift=wrapped-gift; key; bell; guitar; basketball; crown; hat=top-hat;
teapot; light bulb; magnet; camera; robot; umbrella
"""


def _parse(nouns: str) -> tuple[Concept, ...]:
    entries = [entry.strip() for entry in nouns.replace("\n", " ").split(";")]
    pairs = [entry.partition("=") for entry in entries if entry]
    return tuple(Concept(name, icon or name.replace(" ", "-")) for name, _, icon in pairs)


CONCEPTS = _parse(_NOUNS)

# background colours a caption can name; white is what a caption that names none gets
WHITE = (255, 255, 255)
BACKGROUNDS = {"blue": (110, 180, 250), "yellow": (255, 222, 90), "pink": (255, 165, 200)}

# style adapters learn from two thirds of the concepts and are judged on the others
HELD_OUT = tuple(concept for index, concept in enumerate(CONCEPTS) if index % 3 == 2)
SEEN = tuple(concept for concept in CONCEPTS if concept not in HELD_OUT)


def caption(concept: Concept, background: str | None = None) -> str:
    """The caption the base was trained on for this concept."""
    article = "an" if concept.name[0] in "aeiou" else "a"
    ground = f" on a {background} background" if background else ""
    return f"{article} {concept.name}{ground}"
