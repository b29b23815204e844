"""The test cluster itself."""

import pytest

from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm


def test_a_step_on_two_nodes_runs_on_both(cluster: Cluster) -> None:
    assert sorted(cluster.run("srun", "--nodes=2", "hostname").split()) == ["node1", "node2"]
