"""Settings of all tests: an example of a property has no time limit of its own, machines do other things too."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
