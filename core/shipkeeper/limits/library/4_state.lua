-- State: everything about one subject in one packed string: which records it holds, their values, then what is there
-- only at times: the circuit breaker once something failed, and reservations. An expiry is set on every write, so no
-- counter can outlive its use.

-- Forget what does not fit the layout any more, keep by name and kind what does: an edited policy keeps its counts.
local function migrate(cfg, stored, state)
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
  local rest = from[place] -- struct.unpack's last value: where it stopped
  local v = {}
  for i = 1, cfg.values do v[i] = 0 end
  for _, record in ipairs(cfg.records) do
    local source = old[record.id]
    -- A calendar and a first-use window store the same: the count is kept when the kind changes.
    if not source and record.kind == 'C' then source = old['F' .. sub(record.id, 2)] end
    if not source and record.kind == 'F' then source = old['C' .. sub(record.id, 2)] end
    if source and record.kind ~= 'Z' then
      for i = 0, WIDTH[record.kind] - 1 do v[record.place + i] = from[source + i] end
    end
  end
  state.v = v
  state.circuit = cfg.breaker and read_circuit(sub(stored, rest, rest + from[place - 2] - 1))
  -- Reservations made under another layout stay charged: what they took from which limit is no longer known.
end

-- Fill `state` with what is stored of a subject: values in `v`, a `circuit` if something ever failed, `reservations`;
-- `fresh` when nothing is stored.
local function load_state(cfg, key, state)
  local stored = call('GET', key)
  state.key, state.fresh, state.circuit, state.reservations = key, not stored, nil, ''
  if not stored then
    local v = {}
    for i = 1, cfg.values do v[i] = 0 end
    state.v = v
    return state
  end
  local width = #cfg.prefix
  if sub(stored, 1, width) ~= cfg.prefix then
    migrate(cfg, stored, state)
    return state
  end
  local v = { struct.unpack(cfg.format, stored, width + 1) }
  state.v = v
  local length = v[cfg.lengths_at]
  local rest = width + cfg.size + 1
  if length > 0 and cfg.breaker then state.circuit = read_circuit(sub(stored, rest, rest + length - 1)) end
  if v[cfg.lengths_at + 1] > 0 then state.reservations = sub(stored, rest + length) end
  return state
end

-- When the last of the calendar windows of now ends, as a number and as text: both stay the same for long.
local function calendar_end(cfg, now)
  if cfg.calendar_until and now < cfg.calendar_until and now >= cfg.calendar_from then
    return cfg.calendar_end, cfg.calendar_text
  end
  local last, first, from = 0, huge, 0
  for i = 1, cfg.count do
    local limit = cfg.limits[i]
    if limit.kind == 'C' then
      locate(limit, now)
      last, first, from = max(last, limit.window_end), min(first, limit.window_end), max(from, limit.window_start)
    end
  end
  cfg.calendar_end, cfg.calendar_text = last, string.format('%.0f', last)
  cfg.calendar_until, cfg.calendar_from = first, from
  return last, cfg.calendar_text
end

local BREAKER_MEMORY = 7 * 86400000 -- failures of a slow caller are remembered over a week end

-- The instant after which nothing in the state matters, as a number and as text.
local function expiry(cfg, state, now)
  local v = state.v
  local last, text = calendar_end(cfg, now)
  local known = last
  if cfg.has_spans then
    for i = 1, cfg.count do
      local limit = cfg.limits[i]
      if limit.kind == 'F' and v[limit.at + 1] > 0 then last = max(last, v[limit.at] + limit.period) end
      if limit.kind == 'R' then last = max(last, (v[limit.at] + ROLLING_STEPS + 1) * limit.step) end
    end
  end
  if cfg.spacing and v[cfg.spacing.at] > last then last = v[cfg.spacing.at] end
  if state.circuit then last = max(last, max(now, state.circuit.open_until) + BREAKER_MEMORY) end
  for i = 1, #state.reservations, RESERVATION do
    last = max(last, (struct.unpack('<I6', state.reservations, i + 16)))
  end
  if last ~= known then text = string.format('%.0f', last) end
  return last, text
end

--@expiry production
local function store(key, packed, last_text)
  call('SET', key, packed, 'PXAT', last_text)
end
--@end

-- Register the subject for as long as its state lives, so that subjects can be counted.
local function register_subject(cfg, state, last, last_text, now)
  if cfg.maxSubjects and state.v[cfg.subjects_at] < last then
    if state.fresh then call('ZREMRANGEBYSCORE', cfg.subjectsKey, '-inf', now) end
    state.v[cfg.subjects_at] = last
    call('ZADD', cfg.subjectsKey, last_text, state.key)
  end
end

local function save_state(cfg, state, now)
  local last, last_text = expiry(cfg, state, now)
  if last <= now then -- nothing to remember
    if not state.fresh then call('DEL', state.key) end
    return
  end
  register_subject(cfg, state, last, last_text, now)
  local v, circuit = state.v, state.circuit and write_circuit(state.circuit) or ''
  v[cfg.lengths_at], v[cfg.lengths_at + 1] = #circuit, #state.reservations
  local packed = struct.pack(cfg.whole_format, cfg.prefix, unpack(v, 1, cfg.values))
  if #circuit > 0 or #state.reservations > 0 then packed = packed .. circuit .. state.reservations end
  store(state.key, packed, last_text)
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
