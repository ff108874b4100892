"""What train.py and classify.py share: run directories, signals, errors, pictures.

Importing it puts the project's root first on the path: PyPI has another package named `agents`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path.insert(0, str(ROOT))
