"""Every rule of AppDeployment, broken and kept."""

from support.paths import ABSENT
from support.rules.case import RuleCase

_COMMAND = "a probe's command goes with type: Command and with no other type"
_VARIABLE = "spec.env must not set a variable that spec.database, spec.redis or spec.apiKey sets"
_PORT = "spec.extraPorts must each have their own port and protocol"
_SOURCE = "env[].valueFrom needs exactly one of"
_DISTINCT = "spec.database, spec.redis and spec.apiKey must each set a variable of a different name"
_CLAIM = "spec.database.sqlite needs exactly one of size"
_SURGE = "spec.rollout.maxSurge must be above 0"
_SQLITE = "own-key-and-sqlite"

CASES = (
    RuleCase(
        rule="",
        message="metadata.name must be at most 52 characters",
        field="<nil>",
        refused=(("metadata.name", "a" * 53),),
        accepted=(("metadata.name", "a" * 52),),
    ),
    RuleCase(
        rule="",
        message="metadata.name must be a DNS label",
        field="<nil>",
        refused=(("metadata.name", "my.app"),),
        accepted=(("metadata.name", "my-app2"),),
    ),
    RuleCase(
        rule="spec",
        message="spec.replicas must be 0 or 1 with spec.database.sqlite",
        field="spec.replicas",
        base=_SQLITE,
        refused=(("spec.replicas", 2),),
        accepted=(("spec.replicas", 0),),
    ),
    RuleCase(
        rule="spec",
        message="spec.extraPorts must not use the name http",
        field="spec.extraPorts",
        refused=(("spec.extraPorts[0].name", "http"),),
        accepted=(("spec.extraPorts[0].name", "http2"),),
    ),
    RuleCase(
        rule="spec",
        message=_PORT,
        field="spec.extraPorts",
        refused=(("spec.extraPorts[0].port", 8000),),
        accepted=(("spec.extraPorts[0].port", 8000), ("spec.extraPorts[0].protocol", "UDP")),
    ),
    RuleCase(
        rule="spec",
        message=_PORT,
        field="spec.extraPorts",
        refused=(("spec.extraPorts[0].port", 80),),
    ),
    RuleCase(
        rule="spec",
        message=_PORT,
        field="spec.extraPorts",
        refused=(("spec.extraPorts[1]", {"name": "twin", "port": 9000}),),
        accepted=(("spec.extraPorts[1]", {"name": "twin", "port": 9000, "protocol": "UDP"}),),
    ),
    RuleCase(
        rule="spec",
        message=_VARIABLE,
        field="spec.env",
        refused=(("spec.env[0].name", "DATABASE_URL"),),
        accepted=(("spec.env[0].name", "DATABASE_URL"), ("spec.database.variable", "PG_URL")),
    ),
    RuleCase(rule="spec", message=_VARIABLE, field="spec.env", refused=(("spec.env[1].name", "REDIS_URL"),)),
    RuleCase(rule="spec", message=_VARIABLE, field="spec.env", refused=(("spec.env[1].name", "API_KEY"),)),
    RuleCase(rule="spec", message=_VARIABLE, field="spec.env", refused=(("spec.env[1].name", "API_KEY_PREVIOUS"),)),
    RuleCase(
        rule="spec",
        message=_DISTINCT,
        field="spec",
        refused=(("spec.redis.variable", "DATABASE_URL"),),
        accepted=(("spec.redis.variable", "DATABASE_URL"), ("spec.database", ABSENT)),
    ),
    RuleCase(rule="spec", message=_DISTINCT, field="spec", refused=(("spec.apiKey.variable", "DATABASE_URL"),)),
    RuleCase(rule="spec", message=_DISTINCT, field="spec", refused=(("spec.apiKey.previousVariable", "REDIS_URL"),)),
    RuleCase(
        rule="spec.env[]",
        message="each of spec.env needs exactly one of value and valueFrom",
        field="spec.env[0]",
        refused=(("spec.env[0].value", ABSENT),),
        accepted=(("spec.env[0].value", ""),),
    ),
    RuleCase(
        rule="spec.env[]",
        message="each of spec.env needs exactly one of value and valueFrom",
        field="spec.env[1]",
        refused=(("spec.env[1].value", "plain"),),
    ),
    RuleCase(
        rule="spec.env[].valueFrom",
        message=_SOURCE,
        field="spec.env[1].valueFrom",
        refused=(("spec.env[1].valueFrom", {}),),
    ),
    RuleCase(
        rule="spec.env[].valueFrom",
        message=_SOURCE,
        field="spec.env[3].valueFrom",
        refused=(("spec.env[3].valueFrom.secretKeyRef", {"name": "tokens", "key": "token"}),),
        accepted=(("spec.env[3].valueFrom", {"secretKeyRef": {"name": "tokens", "key": "token"}}),),
    ),
    RuleCase(
        rule="spec.probes.liveness",
        message=_COMMAND,
        field="spec.probes.liveness",
        refused=(("spec.probes.liveness.command", ["true"]),),
        accepted=(("spec.probes.liveness.command", ["true"]), ("spec.probes.liveness.type", "Command")),
    ),
    RuleCase(
        rule="spec.probes.readiness",
        message=_COMMAND,
        field="spec.probes.readiness",
        refused=(("spec.probes.readiness.type", "Command"),),
        accepted=(("spec.probes.readiness.type", "None"),),
    ),
    RuleCase(
        rule="spec.probes.startup",
        message=_COMMAND,
        field="spec.probes.startup",
        refused=(("spec.probes.startup.command", []),),
        accepted=(("spec.probes.startup.command", []), ("spec.probes.startup.type", "TCP")),
    ),
    RuleCase(
        rule="spec.database",
        message="spec.database needs exactly one of urlFrom",
        field="spec.database",
        refused=(("spec.database.urlFrom", ABSENT),),
        accepted=(("spec.database", ABSENT),),
    ),
    RuleCase(
        rule="spec.database",
        message="spec.database needs exactly one of urlFrom",
        field="spec.database",
        base=_SQLITE,
        refused=(("spec.database.urlFrom", {"name": "database", "key": "url"}),),
    ),
    RuleCase(
        rule="spec.database.sqlite",
        message=_CLAIM,
        field="spec.database.sqlite",
        base=_SQLITE,
        refused=(("spec.database.sqlite.claimName", "legacy"),),
        accepted=(("spec.database.sqlite.claimName", "legacy"), ("spec.database.sqlite.size", ABSENT)),
    ),
    RuleCase(
        rule="spec.database.sqlite",
        message=_CLAIM,
        field="spec.database.sqlite",
        base=_SQLITE,
        refused=(("spec.database.sqlite.size", ABSENT),),
    ),
    RuleCase(
        rule="spec.database.sqlite",
        message="spec.database.sqlite.size may grow but not shrink",
        field="spec.database.sqlite",
        base=_SQLITE,
        stored=(),
        refused=(("spec.database.sqlite.size", "1023Mi"),),
        accepted=(("spec.database.sqlite.size", "1025Mi"),),
    ),
    RuleCase(
        rule="spec.database.sqlite",
        message="spec.database.sqlite.storageClassName cannot be changed",
        field="spec.database.sqlite",
        base=_SQLITE,
        stored=(),
        refused=(("spec.database.sqlite.storageClassName", "slow"),),
    ),
    RuleCase(
        rule="spec.database.sqlite",
        message="spec.database.sqlite.storageClassName cannot be changed",
        field="spec.database.sqlite",
        base=_SQLITE,
        stored=(),
        refused=(("spec.database.sqlite.storageClassName", ABSENT),),
        accepted=(
            ("spec.database.sqlite.storageClassName", ABSENT),
            ("spec.database.sqlite.size", ABSENT),
            ("spec.database.sqlite.claimName", "copied"),
        ),
    ),
    RuleCase(
        rule="spec.apiKey",
        message="spec.apiKey.variable and spec.apiKey.previousVariable must be two different names",
        field="spec.apiKey",
        refused=(("spec.apiKey.previousVariable", "API_KEY"),),
        accepted=(("spec.apiKey.previousVariable", "OLD_API_KEY"),),
    ),
    RuleCase(
        rule="spec.apiKey",
        message="spec.apiKey.rotation goes with a generated key only",
        field="spec.apiKey",
        refused=(("spec.apiKey.keyFrom", {"name": "key", "key": "api-key"}),),
        accepted=(("spec.apiKey.keyFrom", {"name": "key", "key": "api-key"}), ("spec.apiKey.rotation", ABSENT)),
    ),
    RuleCase(
        rule="spec.rollout",
        message=_SURGE,
        field="spec.rollout",
        refused=(("spec.rollout.maxSurge", 0),),
        accepted=(("spec.rollout.maxSurge", 1),),
    ),
    RuleCase(
        rule="spec.rollout",
        message=_SURGE,
        field="spec.rollout",
        refused=(("spec.rollout.maxSurge", "0%"),),
        accepted=(("spec.rollout.maxSurge", "1%"),),
    ),
    RuleCase(
        rule="spec.rollout",
        message="spec.rollout.minReady must be shorter than spec.rollout.progressDeadline",
        field="spec.rollout",
        refused=(("spec.rollout.minReady", "600s"),),
        accepted=(("spec.rollout.minReady", "599s"),),
    ),
    RuleCase(
        rule="spec.drain",
        message="spec.drain.delay must be shorter than spec.drain.terminationGracePeriod",
        field="spec.drain",
        refused=(("spec.drain.delay", "1m"),),
        accepted=(("spec.drain.delay", "59s"),),
    ),
)
