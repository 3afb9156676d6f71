-- Health of a MigrationJob for Argo CD, by the rules of kstatus (which Flux and `kubectl wait` follow).
local health = { status = "Progressing", message = "Waiting for Shipkeeper to see the resource" }
if obj.metadata ~= nil and obj.metadata.deletionTimestamp ~= nil then
  health.message = "Being deleted"
  return health
end
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  health.message = "Waiting for Shipkeeper to see the latest spec"
  return health
end

local found = {}
for _, condition in ipairs(obj.status.conditions) do
  found[condition.type] = condition
end
local function holds(type)
  return found[type] ~= nil and found[type].status == "True"
end
local function answer(status, condition)
  return { status = status, message = condition.reason .. ": " .. condition.message }
end

-- A plan that waits for a person has not failed: it goes on when the person has approved it.
if holds("Stalled") and found.Stalled.reason == "AwaitingApproval" then
  return answer("Suspended", found.Stalled)
end
if holds("Stalled") then
  return answer("Degraded", found.Stalled)
end
if holds("Reconciling") then
  return answer("Progressing", found.Ready or found.Reconciling)
end
if found.Ready == nil then
  return health
end
if holds("Ready") then
  return answer("Healthy", found.Ready)
end
if obj.spec ~= nil and obj.spec.suspend then
  return answer("Suspended", found.Ready)
end
return answer("Progressing", found.Ready)
