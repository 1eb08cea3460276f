"""``python -m ecanet`` is ``ecanet``; by its path, this file is how ecanet starts itself."""

import os
import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    # The current folder, or that of this file: what lies there is not to be imported as a library.
    del sys.path[0]

# Every process of a run has this ecanet, even where it was found in the folder that has just been left out
# and another one is installed.
_home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_has_ecanet = [os.path.isdir(os.path.join(entry, "ecanet")) for entry in sys.path]
_first = _has_ecanet.index(True) if True in _has_ecanet else len(sys.path)
if sys.path[_first : _first + 1] != [_home]:
    sys.path.insert(_first, _home)

# Libraries that start further processes of this program start them by its path as well, not by -m.
__spec__ = None

if __name__ == "__main__":
    from ecanet.cli.main import main

    main()
