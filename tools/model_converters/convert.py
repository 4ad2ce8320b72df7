"""``mmrednet convert``, for a clone that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmrednet.commands.convert import main

if __name__ == '__main__':
    main()
