__version__ = "0.1.0"


def __getattr__(name: str):
    "`semsynth.load` is looked up when it is first used, since it imports every family."
    if name == "load":
        from semsynth.configs import load

        return load
    raise AttributeError(f"module 'semsynth' has no attribute {name!r}")
