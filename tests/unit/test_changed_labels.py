"""A pod stays its run's in the cache, whatever somebody makes of the operator's labels on it."""

from typing import Any

import pytest

from lora_operator.cluster.cache import Cache, Key
from lora_operator.views.names import NAME_LABEL, UID_LABEL, child_labels

OWNER = Key("team", "tone")


def pod(version: str) -> dict[str, Any]:
    """A pod of the run at this version."""
    metadata = {"namespace": "team", "name": "pod", "uid": "p1", "resourceVersion": version}
    return {"metadata": {**metadata, "labels": child_labels("tone", "u1", 1)}, "status": {"phase": "Running"}}


@pytest.mark.parametrize("label", [NAME_LABEL, UID_LABEL])
def test_an_object_whose_labels_name_another_owner_by_now_keeps_the_one_it_had(label: str) -> None:
    """Labels are an index alone: whoever changes one of them takes no pod from a run, nor gives it one."""
    pods = Cache().pods
    pods.put(pod("5"))
    changed = pod("6")
    changed["metadata"]["labels"] = {**changed["metadata"]["labels"], label: "other"}
    assert pods.put(changed) == OWNER
    assert [view.name for view in pods.of(OWNER, "u1")] == ["pod"]


@pytest.mark.parametrize("version", ["5", "6", "7"], ids=["overtaken", "known", "newer"])
@pytest.mark.parametrize("label", [NAME_LABEL, UID_LABEL])
def test_a_live_read_takes_an_object_from_the_owner_that_its_labels_name(label: str, version: str) -> None:
    """Though the watch has brought the same version of it, or a newer one, and for as long as the object is there."""
    pods = Cache().pods
    changed = pod("6")
    changed["metadata"]["labels"] = {**changed["metadata"]["labels"], label: "other"}
    pods.put(changed)
    assert pods.of(OWNER, "u1") == ()
    read = {**changed, "metadata": {**changed["metadata"], "resourceVersion": version}}
    pods.put(read, (OWNER.name, "u1"), as_of=version)
    assert [view.name for view in pods.of(OWNER, "u1")] == ["pod"]
    changed["metadata"] = {**changed["metadata"], "resourceVersion": "8"}
    assert pods.put(changed) == OWNER
    assert [view.name for view in pods.of(OWNER, "u1")] == ["pod"]
    assert pods.remove(changed) == OWNER
    assert len(pods) == 0
