"""How the sets of these tests are built."""

import pytest

from sf_lightning.data.recipe import Recipe
from sf_lightning.data.shards import ShardSet
from tests.toys.shards import tokenizer_beside


@pytest.fixture
def recipe(shards: ShardSet) -> Recipe:
    """Shards of three clips with the k-means tokens of the fixture."""
    return Recipe(tokenizer_beside(shards), shard_samples=3)
