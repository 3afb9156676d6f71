-- Reservations: units charged at once, given back when they are cancelled or when their lease ends without a commit.

local MAX_RESERVATIONS = 64

local function reservable(accounts)
  for _, account in ipairs(accounts) do
    if #account.state.reservations >= MAX_RESERVATIONS * RESERVATION then return false end
  end
  return true
end

local function reserve(state, identity, cost, now, lease)
  state.reservations = state.reservations .. identity .. struct.pack('<I6I4I6', now + lease, cost, now)
end

local function give_back(cfg, state, cost, charged_at)
  for _, limit in ipairs(cfg.limits) do
    if limit.kind ~= 'X' then refund(limit, state.v, cost, charged_at) end
  end
end

-- Units of a reservation whose lease ended are back. What it took from an execution's limit stays taken: the execution
-- is named only by its own calls.
local function expire_reservations(cfg, state, now)
  local kept = {}
  for i = 1, #state.reservations, RESERVATION do
    local expires, cost, charged_at = struct.unpack('<I6I4I6', state.reservations, i + 16)
    if expires > now then
      kept[#kept + 1] = sub(state.reservations, i, i + RESERVATION - 1)
    else
      give_back(cfg, state, cost, charged_at)
    end
  end
  state.reservations = table.concat(kept)
end

-- Take a reservation out of the list: its cost and when it was charged, or nil.
local function take_reservation(state, identity)
  for i = 1, #state.reservations, RESERVATION do
    if sub(state.reservations, i, i + 15) == identity then
      local _, cost, charged_at = struct.unpack('<I6I4I6', state.reservations, i + 16)
      state.reservations = sub(state.reservations, 1, i - 1) .. sub(state.reservations, i + RESERVATION)
      return cost, charged_at
    end
  end
  return nil
end
