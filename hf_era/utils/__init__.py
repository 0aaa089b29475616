"""What every layer may use: files, processes, signals, checks. It imports nothing else of the package."""
