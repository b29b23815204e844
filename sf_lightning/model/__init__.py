"""The network: layouts as data, blocks as the batch. Independent of flows, noise and audio."""
