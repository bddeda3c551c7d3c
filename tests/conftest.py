"""What every test may rely on."""

from __future__ import annotations

import signal

# A shell without job control starts background commands with SIGINT ignored, and what is ignored is inherited: the commands
# that tests start would then never see the Ctrl-C they are sent.
signal.signal(signal.SIGINT, signal.default_int_handler)
