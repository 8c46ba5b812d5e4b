"""Files that try to run code, to exhaust the machine, or to pass for something they are not.

Each is bytes made by a function of the path that its payload would touch; pickling an object that
runs a command when it is unpickled runs nothing.
"""

from hostile.corpus import amounts, archives, calls, others, records
from hostile.corpus.register import HOSTILE, Hostile

__all__ = ["HOSTILE", "Hostile", "amounts", "archives", "calls", "others", "records"]
