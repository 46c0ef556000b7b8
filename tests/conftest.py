"""For all tests. That this file is here puts its folder on the import path, for `tiny_t5` and the like."""

from hypothesis import settings

# A busy machine is not a defect; and a failure is to be the same for everyone who runs it.
settings.register_profile("tandem", deadline=None, derandomize=True)
settings.load_profile("tandem")
