"""How the sets of these tests are built."""

import pytest

from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.shards import ShardSet
from tests.toys.shards import tokenizer_beside


@pytest.fixture
def config(shards: ShardSet) -> BuildConfig:
    """Shards of three clips with the k-means tokens of the fixture."""
    return BuildConfig(tokenizer_beside(shards), shard_samples=3)
