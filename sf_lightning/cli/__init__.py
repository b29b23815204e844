"""The commands: sf-fit, sf-shards, sf-decode. A user's mistake ends in one line, not a traceback."""
