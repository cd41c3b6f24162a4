"""Whether this process is to end, as Ctrl-C asks: who waits for a server that does not answer then waits no more.

`stuck`: threads were waited for and are still in calls to Ray. To shut Ray down then would end the process at once, in
silence, with status 1.
"""

import threading

ending = threading.Event()
stuck = threading.Event()
