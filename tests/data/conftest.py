"""Configuration of the builds of these tests."""

import pytest

from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.shards import ShardSet
from tests.toys.shards import tokenizer_beside


@pytest.fixture
def config(shards: ShardSet) -> BuildConfig:
    """Returns a configuration with shards of three clips and the tokenizer of the `shards` fixture."""
    return BuildConfig(tokenizer_beside(shards), shard_samples=3)
