"""`tandem top`: what servers do right now, from `/metrics` alone."""
