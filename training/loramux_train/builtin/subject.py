"""The zib: a creature drawn for this project, the subject of the built-in subject adapter.

Takes a pose; gives an SVG document. The drawings are the project's own, under its licence. Knows no training.
"""

from dataclasses import dataclass

from loramux_train.builtin.icons import RENDER_SIZE, Rgba, render

TRIGGER = "zib"


@dataclass(frozen=True, slots=True)
class Pose:
    """How a zib stands: lean in degrees, where it looks, how high its arms are, how wide it smiles."""

    lean: int = 0
    look: int = 0
    arms: int = 0
    smile: int = 7


POSES = (
    Pose(),
    Pose(lean=-6, look=-5),
    Pose(lean=5, look=5, arms=14),
    Pose(arms=24, smile=11),
    Pose(look=6, smile=4),
    Pose(lean=-4, arms=-8, look=-3, smile=9),
)


def zib_svg(pose: Pose) -> str:
    """One zib: a violet drop with a single eye, two orange horns, a lime belly and orange feet."""
    eye = 64 + pose.look
    hand = 78 - pose.arms
    space = 'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128"'
    return f"""<svg {space} width="{RENDER_SIZE}" height="{RENDER_SIZE}">
<g transform="rotate({pose.lean} 64 110)">
<path d="M38 40 L28 8 L54 28 Z" fill="#ff8a1f"/><path d="M90 40 L100 8 L74 28 Z" fill="#ff8a1f"/>
<path d="M30 72 Q12 {hand} 8 {hand + 6}" stroke="#5b2bbf" stroke-width="11" stroke-linecap="round" fill="none"/>
<path d="M98 72 Q116 {hand} 120 {hand + 6}" stroke="#5b2bbf" stroke-width="11" stroke-linecap="round" fill="none"/>
<ellipse cx="46" cy="117" rx="15" ry="8" fill="#ff8a1f"/><ellipse cx="82" cy="117" rx="15" ry="8" fill="#ff8a1f"/>
<path d="M64 18 C98 18 106 60 104 84 C102 108 84 116 64 116 C44 116 26 108 24 84 C22 60 30 18 64 18 Z" fill="#7a3df0"/>
<path d="M64 78 C86 78 92 92 88 102 C82 112 74 114 64 114 C54 114 46 112 40 102 C36 92 42 78 64 78 Z" fill="#b8f03c"/>
<circle cx="64" cy="50" r="22" fill="#fff"/><circle cx="{eye}" cy="51" r="12" fill="#12b5a6"/>
<circle cx="{eye}" cy="51" r="6" fill="#161028"/><circle cx="{eye - 4}" cy="46" r="3" fill="#fff"/>
<path d="M{64 - pose.smile} 88 Q64 {88 + pose.smile} {64 + pose.smile} 88" stroke="#3a1780" stroke-width="4"
 stroke-linecap="round" fill="none"/>
</g></svg>"""


def zib_pictures() -> list[Rgba]:
    """Every pose, rendered."""
    return [render(zib_svg(pose)) for pose in POSES]
