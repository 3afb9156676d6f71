-- State: everything about one subject in one packed string: which records it holds, their values, then the variable
-- parts (breaker window, permits, reservations). Its expiry is set on every write, so no counter can outlive its use.

-- Forget what does not fit the layout any more, keep by name and kind what does: an edited policy keeps its counts.
local function migrate(cfg, stored)
  local count = byte(stored, 1)
  local old, format, place = {}, { '<' }, 1
  for i = 1, count do
    local id = sub(stored, 2 + (i - 1) * 5, 6 + (i - 1) * 5)
    local kind = sub(id, 1, 1)
    old[id] = place
    format[#format + 1] = FIELDS[kind]
    place = place + WIDTH[kind]
  end
  local from = { struct.unpack(table.concat(format), stored, 2 + count * 5) }
  local tail_start = from[place] -- struct.unpack's last value: where it stopped
  local values = {}
  for i = 1, cfg.values do values[i] = 0 end
  local tails = { window = '', permits = '', reservations = '' }
  for _, record in ipairs(cfg.records) do
    local source = old[record.id]
    -- A calendar and a first-use window store the same: the count is kept when the kind changes.
    if not source and record.kind == 'C' then source = old['F' .. sub(record.id, 2)] end
    if not source and record.kind == 'F' then source = old['C' .. sub(record.id, 2)] end
    if source and record.kind ~= 'Z' then
      for i = 0, WIDTH[record.kind] - 1 do values[record.place + i] = from[source + i] end
      if record.kind == 'B' then
        local window, permits = from[source + 9], from[source + 10]
        tails.window = sub(stored, tail_start, tail_start + window - 1)
        tails.permits = sub(stored, tail_start + window, tail_start + window + permits - 1)
      end
    end
  end
  -- Reservations made under another layout stay charged: what they took from which limit is no longer known.
  return values, tails
end

-- Return the state of a subject as {values, tails}; `fresh` when there is none yet.
local function load_state(cfg, key)
  local stored = call('GET', key)
  if not stored then
    local values = {}
    for i = 1, cfg.values do values[i] = 0 end
    return { v = values, window = '', permits = '', reservations = '', fresh = true, key = key }
  end
  local width = #cfg.prefix
  if sub(stored, 1, width) ~= cfg.prefix then
    local values, tails = migrate(cfg, stored)
    return { v = values, window = tails.window, permits = tails.permits, reservations = '', key = key }
  end
  local values = { struct.unpack(cfg.format, stored, width + 1) }
  local state = { v = values, window = '', permits = '', reservations = '', key = key }
  local at = width + cfg.size + 1
  if #stored >= at then
    local b = cfg.breaker
    if b then
      local window, permits = values[b.at + 9], values[b.at + 10]
      state.window = sub(stored, at, at + window - 1)
      state.permits = sub(stored, at + window, at + window + permits - 1)
      at = at + window + permits
    end
    state.reservations = sub(stored, at)
  end
  return state
end

local RESERVATION = 32 -- bytes: identity 16, end of the lease 6, cost 4, charged at 6
local BREAKER_MEMORY = 7 * 86400000 -- failures of a slow caller are remembered over a week end
local REPORT_MEMORY = 3600000 -- the generation that a permit names is kept for the call's report

-- The instant after which nothing in the state matters.
local function expiry(cfg, state, now)
  local v, last = state.v, 0
  for _, limit in ipairs(cfg.limits) do
    local kind, at = limit.kind, limit.at
    if kind == 'C' then
      if v[at + 1] > 0 and limit.window_end > last then last = limit.window_end end
    elseif kind == 'F' then
      if v[at + 1] > 0 then last = max(last, v[at] + limit.period) end
    elseif kind == 'R' then
      last = max(last, (v[at] + ROLLING_STEPS + 1) * limit.step)
    end
  end
  if cfg.spacing then last = max(last, v[cfg.spacing.at]) end
  local b = cfg.breaker
  if b and (v[b.at] > 0 or v[b.at + 4] > 0 or v[b.at + 5] > 0 or #state.window > 0) then
    last = max(last, max(now, v[b.at + 3]) + BREAKER_MEMORY)
  elseif b and v[b.at + 1] > 0 then
    last = max(last, now + REPORT_MEMORY)
  end
  for i = 1, #state.reservations, RESERVATION do
    last = max(last, (struct.unpack('<I6', state.reservations, i + 16)))
  end
  return last
end

-- Register the subject for as long as its state lives, so that subjects can be counted.
local function register_subject(cfg, state, until_instant, now)
  if cfg.maxSubjects and state.v[cfg.subjects_at] < until_instant then
    if state.fresh then call('ZREMRANGEBYSCORE', cfg.subjectsKey, '-inf', now) end
    state.v[cfg.subjects_at] = until_instant
    call('ZADD', cfg.subjectsKey, until_instant, state.key)
  end
end

local function save_state(cfg, state, now)
  local last = expiry(cfg, state, now)
  if last <= now then -- nothing to remember
    if not state.fresh then call('DEL', state.key) end
    return
  end
  register_subject(cfg, state, last, now)
  local v, b = state.v, cfg.breaker
  if b then v[b.at + 9], v[b.at + 10] = #state.window, #state.permits end
  v[cfg.reservations_at] = #state.reservations
  local packed = cfg.prefix .. struct.pack(cfg.format, unpack(v, 1, cfg.values))
  if b then packed = packed .. state.window .. state.permits end
  call('SET', state.key, packed .. state.reservations, 'PX', last - now)
end

-- Units used by one execution (a run that the caller names), per limit of period Execution. A key of its own: an
-- execution has no window, it is forgotten a week after its last call.
local EXECUTION_MEMORY = 7 * 86400000

local function execution_key(key, execution) return key .. '\31x' .. execution end

local function load_execution(cfg, key, execution)
  local used = {}
  for i = 1, cfg.executions do used[i] = 0 end
  local stored = call('GET', execution_key(key, execution))
  if not stored then return used end
  local width = #cfg.execution_prefix
  if sub(stored, 1, width) == cfg.execution_prefix then
    return { struct.unpack(cfg.execution_format, stored, width + 1) }
  end
  local old = byte(stored, 1)
  for i = 1, old do
    local id = sub(stored, 2 + (i - 1) * 4, 1 + i * 4)
    for j, name in ipairs(cfg.execution_ids) do
      if name == id then used[j] = struct.unpack('<I4', stored, 2 + old * 4 + (i - 1) * 4) end
    end
  end
  return used
end

local function save_execution(cfg, key, execution, used, now)
  local packed = cfg.execution_prefix .. struct.pack(cfg.execution_format, unpack(used, 1, cfg.executions))
  call('SET', execution_key(key, execution), packed, 'PX', EXECUTION_MEMORY)
end
