"""Reading a zip file of Stable-Baselines3 or sb3-contrib, whose settings are pickled, with care."""

import base64
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import cloudpickle
import torch

from agents import pickled_values, torch_file
from agents.remedies import remedy
from npg.checkpoints import members_of
from npg.errors import CheckpointError

_SERIALIZED = ":serialized:"
# Stable-Baselines3 does not compress; somebody may have since. JSON shrinks to a tenth.
_KINDS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_GROWTH = 50
# What is no state dictionary: variables of algorithms off policy, by their name now and before.
_VARIABLES = {"pytorch_variables.pth", "tensors.pth"}


def read_peer(
    content: bytes, name: str, device: torch.device | str
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Reads a file of Stable-Baselines3's format.

    Args:
        content: The file's.
        name: What errors call it.
        device: Where tensors go.

    Returns:
        The attributes as they stand in the file, for :func:`peer_attributes`, the state
        dictionaries by name, and what the file says about the system that it was saved on.

    Raises:
        CheckpointError: If the file is damaged, or something else.
    """
    members = members_of(content, name, _KINDS, _GROWTH)
    missing = {"data", "policy.pth"} - members.keys()
    if missing:
        raise CheckpointError(
            f"{name} is truncated, or no checkpoint of an agent: it lacks {sorted(missing)}"
        )
    try:
        items = dict(json.loads(members["data"]).items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{name}: its member data is damaged ({error})") from error
    states = {
        member.removesuffix(".pth"): torch_file.read(state, f"{name}: {member}", device)
        for member, state in members.items()
        if member.endswith(".pth") and member not in _VARIABLES
    }
    states["policy"] = _with_extractors(states["policy"])
    system = members.get("system_info.txt", b"not in the file").decode(errors="replace")
    return items, states, system


def peer_attributes(
    items: Mapping[str, Any], name: str, trust: bool, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Makes the attributes of an agent from what stands in a file.

    Args:
        items: The first that :func:`read_peer` returned.
        name: What errors call the file.
        trust: Whether pickles may run whatever they ask for.
        given: Attributes that are not read but taken from here, as far as the file has them.

    Returns:
        The attributes.

    Raises:
        CheckpointError: If a pickle is damaged, or asks for what may not be run.
    """
    return {
        key: given[key] if key in given else _attribute(f"{name}: agent.{key}", key, item, trust)
        for key, item in items.items()
    }


def _attribute(place: str, key: str, item: Any, trust: bool) -> Any:
    if not isinstance(item, dict) or _SERIALIZED not in item:
        return item
    try:
        pickled = base64.b64decode(item[_SERIALIZED])
        try:
            return pickled_values.read(pickled)
        except Exception:  # a file of old, or one that nobody wrote
            if trust:
                return cloudpickle.loads(pickled)
            raise
    except Exception as error:  # a pickle can raise whatever it likes
        raise CheckpointError(
            f"{place} is pickled and cannot be read: {error}; {remedy(f'agent.{key}')}"
        ) from error


def _with_extractors(policy: Any) -> Any:
    """Before 1.7, a policy had one extractor of features under one name, not under three."""
    if not isinstance(policy, dict) or any(k.startswith("pi_features_extractor.") for k in policy):
        return policy
    first = "features_extractor."
    more = {
        f"{part}_{key}": value
        for key, value in policy.items()
        if key.startswith(first)
        for part in ("pi", "vf")
    }
    policy.update(more)
    return policy
