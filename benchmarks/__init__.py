"Measurements of this machine, as tables: `python -m benchmarks`. Nothing here is a test."
