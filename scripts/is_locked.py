"""Ends with status 0 where the interpreter is the one that the locked lists of requirements/ are for."""

import platform
import sys

sys.exit((sys.version_info[:2], platform.system(), platform.machine()) != ((3, 11), "Linux", "x86_64"))
