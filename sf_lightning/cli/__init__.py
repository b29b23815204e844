"""The commands sf-fit, sf-shards, sf-decode, sf-eval, sf-export and sf-sweep; errors are one line each."""
