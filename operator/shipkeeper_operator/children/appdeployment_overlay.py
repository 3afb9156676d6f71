"""Strategic merge of a pod template: what `kubectl patch --type strategic` does, for the types a pod is made of.

No Python library does this. The merge keys are those that the Kubernetes API's own types declare (`patchMergeKey` in
k8s.io/api/core/v1); lists that are not here are replaced as a whole, as the API server does.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

# By the field that holds the list, wherever in a pod template it stands.
_MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "env": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
}
_DIRECTIVE: Final = "$patch"


class OverlayError(ValueError):
    """An overlay that cannot be merged; the text names the field and the fix."""


def merged(original: Mapping[str, Any], overlay: Mapping[str, Any], *, path: str) -> dict[str, Any]:
    """Return the original with the overlay merged in. A null removes a field; `$patch: delete` a list's element.

    `path` is where the overlay stands in the resource, for the message of an OverlayError.
    """
    if overlay.get(_DIRECTIVE) == "replace":
        return {key: value for key, value in overlay.items() if key != _DIRECTIVE}
    result = dict(original)
    for key, value in overlay.items():
        here = f"{path}.{key}"
        if key == _DIRECTIVE:
            raise OverlayError(f"{here} must be replace (or, in an element of a list, delete), not {value!r}")
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping):
            before = result.get(key)
            result[key] = merged(before if isinstance(before, Mapping) else {}, value, path=here)
        elif isinstance(value, Sequence) and not isinstance(value, str) and key in _MERGE_KEYS:
            result[key] = _merged_list(result.get(key) or (), value, key=_MERGE_KEYS[key], path=here)
        else:
            result[key] = value
    return result


def _merged_list(original: Sequence[Any], overlay: Sequence[Any], *, key: str, path: str) -> list[Any]:
    result: list[dict[str, Any]] = [dict(item) for item in original]
    for index, item in enumerate(overlay):
        here = f"{path}[{index}]"
        if not isinstance(item, Mapping) or key not in item:
            raise OverlayError(f"{here} needs the field {key}: elements of this list are merged by it")
        position = next((place for place, known in enumerate(result) if known.get(key) == item[key]), None)
        if item.get(_DIRECTIVE) == "delete":
            if position is not None:
                del result[position]
        elif position is None:
            result.append(merged({}, item, path=here))
        else:
            result[position] = merged(result[position], item, path=here)
    return result
