"""Where pictures are instead, when a folder has none: the usual mistake is one level too deep, or too high.

Takes the folder; gives a sentence. Looks at a bounded number of files.
"""

import os
from collections import Counter
from pathlib import Path

from loramux_train.data.reading import ENDINGS

_MOST_FOLDERS = 200


def say_where_pictures_are(folder: Path) -> str:
    """The folders nearest to this one that have pictures, with their counts, or that none has any."""
    for above in (folder.resolve().parent, folder.resolve().parent.parent):
        counts = _pictures_below(above)
        if counts:
            shown = ", ".join(f"{where} ({count})" for where, count in counts.most_common(3))
            return f"pictures were found in {shown}: is it that folder?"
    kinds = sorted({path.suffix for path in folder.iterdir() if path.is_file() and path.suffix})
    has = f"it has files in {', '.join(kinds[:5])}" if kinds else "it is empty" if not any(folder.iterdir()) else ""
    return f"{has + '; ' if has else ''}pictures end in {', '.join(sorted(ENDINGS))}"


def _pictures_below(above: Path) -> Counter[Path]:
    counts: Counter[Path] = Counter()
    for visited, (folder, below, names) in enumerate(os.walk(above)):
        depth = len(Path(folder).relative_to(above).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if depth < 2 else []
        counts[Path(folder)] += sum(os.path.splitext(name)[1].lower() in ENDINGS for name in names)
        if visited > _MOST_FOLDERS:
            break
    return +counts
