"""The network: layouts as data, blocks as the batch. Knows nothing of flows, noise or sound."""
