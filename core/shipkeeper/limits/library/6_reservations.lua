-- Reservations: units charged at once, given back when they are cancelled or when their lease ends without a commit.

local MAX_RESERVATIONS = 64
local RESERVATION = '<I6I4I6I2' -- after the identity of 16 bytes: end of the lease, cost, charged at, length of what follows
local RESERVATION_SIZE = 34 -- then the name of the execution, if there is one

-- Call visit(identity, expires, cost, charged_at, execution) for each; keep those for which it returns true.
local function filter_reservations(stored, visit)
  local kept, count, at = {}, 0, 1
  while at <= #stored do
    local expires, cost, charged_at, length = struct.unpack(RESERVATION, stored, at + 16)
    local name_at = at + RESERVATION_SIZE
    local execution = sub(stored, name_at, name_at + length - 1)
    if visit(sub(stored, at, at + 15), expires, cost, charged_at, execution) then
      count = count + 1
      kept[count] = sub(stored, at, name_at + length - 1)
    end
    at = name_at + length
  end
  return concat(kept), count
end

function last_lease(stored)
  local last = 0
  filter_reservations(stored, function(_, expires) last = max(last, expires) end)
  return last
end

local function reservable(accounts, n)
  for i = 1, n do
    local _, count = filter_reservations(accounts[i].reservations, function() return true end)
    if count >= MAX_RESERVATIONS then return false end
  end
  return true
end

local function reserve(account, identity, cost, now, lease, execution)
  local record = identity .. struct.pack(RESERVATION, now + lease, cost, now, #execution) .. execution
  account.reservations = account.reservations .. record
end

local function give_back(account, cost, charged_at, now)
  local cfg, calendar = account.cfg, 0
  for _, limit in ipairs(cfg.limits) do
    if limit.kind == 'C' then calendar = calendar + 1 end
    if limit.kind ~= 'X' then
      refund(limit, account.v, cost, charged_at, now, account.later_starts and account.later_starts[calendar])
    end
  end
end

-- Units of an execution are in a key of its own, or already read when the call is of that execution.
local function give_back_execution(account, name, cost, writes)
  local cfg = account.cfg
  if cfg.executions == 0 or name == '' then return end
  local here = account.execution and account.execution_name == name
  local used = here and account.execution or load_execution(cfg, account.key, name)
  for i = 1, cfg.executions do used[i] = max(0, used[i] - cost) end
  if writes then save_execution(cfg, account.key, name, used) end
end

-- Units of a reservation whose lease ended are back. A look (`writes` false) only reckons with it.
local function expire_reservations(account, now, writes)
  local ended = false
  account.reservations = filter_reservations(account.reservations, function(_, expires, cost, charged_at, execution)
    if expires > now then return true end
    give_back(account, cost, charged_at, now)
    give_back_execution(account, execution, cost, writes)
    ended = true
    return false
  end)
  -- At once, or a denied call would give the units of the execution back again with the next one.
  if ended and writes then save_state(account.cfg, account, now) end
end

-- Take a reservation out of the list: its cost, when it was charged and to which execution; or nil.
local function take_reservation(account, wanted)
  local found_cost, found_at, found_execution
  account.reservations = filter_reservations(account.reservations, function(identity, _, cost, charged_at, execution)
    if identity ~= wanted then return true end
    found_cost, found_at, found_execution = cost, charged_at, execution
    return false
  end)
  return found_cost, found_at, found_execution
end
