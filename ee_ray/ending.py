"""Whether this process is to end, as Ctrl-C asks: who waits for a server that does not answer then waits no more."""

import threading

ending = threading.Event()
