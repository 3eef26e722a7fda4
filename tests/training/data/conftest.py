"""Makes this folder's builders importable (`import picture_folders`)."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
