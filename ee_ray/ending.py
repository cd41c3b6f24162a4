"""Whether this process is to end, as Ctrl-C asks: who waits for a server that does not answer then waits no more.

`stuck`: threads that were waited for and were still in calls to Ray. To shut Ray down while one lives can end the process at
once, in silence, with status 1.
"""

import threading

ending = threading.Event()
stuck: list[threading.Thread] = []
