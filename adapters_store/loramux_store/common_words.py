"""Words that prompts have anyway, and so make poor triggers: in a blend each of them means the embedding.

Takes a trigger; says whether it is one of some hundred English words that captions of pictures are full of: articles
and prepositions, colours, sizes, people, animals, things, places, and what pictures are called. Names and rare words
are not among them. Knows no prompts.
"""

from __future__ import annotations

from loramux_store.names import spelled

__all__ = ["is_common"]

_LISTED = """
a an and as at by for from in into is it its no not of on one or over the this that to two three under up with black
blue bright brown colorful dark golden gray green grey light orange pink purple red silver white yellow beautiful best
big clean close cold cool cute fast fine full good happy high hot large little long low new old pretty real sad short
simple small soft tall ugly warm wet wide young bad worst baby boy child face family girl hair hand hands head king
man men model people person princess queen smile soldier warrior woman women eye eyes body animal bear bird butterfly
cat cow deer dog dragon eagle elephant fish fox frog horse lion monkey mouse owl panda pig rabbit robot sheep snake
tiger wolf apple bag ball bed book bottle box bread cake camera candle car chair clothes clock coffee cup dress fire
flag flower flowers food fruit glass gun hat house jacket key lamp leaf machine mask mirror moon phone plane plate
ring rose shirt ship shoe sign snow star sun sword table tea toy train tree umbrella window wine beach bridge building
castle church city cloud clouds desert field forest garden hill home island kitchen lake mountain night ocean park
river road room school sea sky space street town village wall water world day anime art artist background cartoon
comic detailed digital drawing fantasy film icon illustration image ink landscape logo oil painting paper pattern
photo photograph photography picture pixel portrait poster quality realistic render scene sketch style texture view
watercolor
"""
_WORDS = frozenset(_LISTED.split())


def is_common(trigger: str) -> bool:
    """Whether a trigger is one of them, in upper or lower case."""
    return spelled(trigger) in _WORDS
