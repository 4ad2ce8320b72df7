"""``mmrednet export``, for a clone that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmrednet.commands.export import main

if __name__ == '__main__':
    sys.exit(main())
