"""Everything that touches Ray's private parts, because Ray has no public way to the same end. No other file
imports them; each function says what the public API lacks.

All of it is written for one minor version of Ray. Another one may need changes here, and nowhere else.
"""

RAY_VERSION = "2.60"
