-- State: everything about one subject in one packed string. First its head: which records it holds, and the start of each
-- calendar window. Then the values of the records. Then what is there only at times: the circuit breaker once something
-- failed, and reservations. An expiry is set on every write, so no counter can outlive its use.
--
-- While all calendar windows are the current ones and the policy is the one that wrote it, a head equals the policy's own,
-- and the values are as they stand. That is nearly always so.

-- Take a stored head apart: what is at which place, or nil where it is none (foreign data under our key).
local function read_head(stored)
  local count, old, formats, calendars, place, kind = byte(stored, 1) or 0, {}, {}, 0, 1, ''
  for i = 1, count do
    local id = sub(stored, 2 + (i - 1) * 5, 6 + (i - 1) * 5)
    kind = sub(id, 1, 1)
    if not FIELDS[kind] or #id < 5 then return nil end
    if kind == 'W' then calendars = calendars + 1 end
    old[id] = { place = place, calendar = calendars }
    formats[i] = FIELDS[kind]
    place = place + WIDTH[kind]
  end
  if kind ~= 'Z' then return nil end -- the last record holds the lengths of what follows
  local starts_at = 2 + count * 5
  local values_at = starts_at + calendars * 6
  local values = '<' .. concat(formats)
  local rest = values_at + struct.size(values)
  if #stored < rest - 1 then return nil end
  local from = { struct.unpack(values, stored, values_at) }
  if #stored ~= rest - 1 + from[place - 2] + from[place - 1] then return nil end
  local starts = { struct.unpack('<' .. rep('I6', calendars), stored, starts_at) }
  return { records = old, values = from, starts = starts, rest = rest, lengths_at = place - 2 }
end

-- The count of a calendar limit under the rule for rollover and for an edited period alike: it stays when its window
-- began within this one. One that begins later was charged by a clock ahead of this (a failover can do that): it counts,
-- nothing is given back. Return the count and the start, where that is a later one.
local function calendar_count(limit, start, count)
  if start < limit.window_start then return 0, nil end
  return count, start > limit.window_start and start or nil
end

local function keep_later_start(account, calendar, start)
  account.later_starts = account.later_starts or {}
  account.later_starts[calendar] = start
end

-- Find the old record that goes on as this one, with the start of its window.
local function predecessor(head, record)
  local same = head.records[record.id]
  if record.kind == 'W' then
    if same then return same, head.starts[same.calendar], head.values[same.place] end
    -- A calendar and a first-use window count alike: the count is kept when the kind changes.
    same = head.records['F' .. sub(record.id, 2)]
    if same then return same, head.values[same.place], head.values[same.place + 1] end
  elseif record.kind == 'F' and not same then
    same = head.records['W' .. sub(record.id, 2)]
    if same then return same, head.starts[same.calendar], head.values[same.place] end
  end
  return same
end

-- Read a state of another layout: the policy was edited. What does not fit any more is forgotten; what does is kept by
-- name and kind. Return whether there was anything to read.
local function adopt(cfg, stored, account)
  local head = read_head(stored)
  if not head then return false end
  local v, calendar = account.v, 0
  for i = 1, cfg.values do v[i] = 0 end
  for _, record in ipairs(cfg.records) do
    local old, start, count = predecessor(head, record)
    if record.kind == 'W' then
      calendar = calendar + 1
      if old then
        local kept, later = calendar_count(record.limit, start, count)
        v[record.place] = kept
        if later then keep_later_start(account, calendar, later) end
      end
    elseif start then
      v[record.place], v[record.place + 1] = start, count
    elseif old and record.kind ~= 'Z' then
      for i = 0, WIDTH[record.kind] - 1 do v[record.place + i] = head.values[old.place + i] end
    end
  end
  local circuit_size = head.values[head.lengths_at]
  if circuit_size > 0 and cfg.breaker then
    account.circuit = read_circuit(sub(stored, head.rest, head.rest + circuit_size - 1))
    -- Calls counted in another kind of window mean nothing to this one.
    if not head.records[cfg.circuit_id] then account.circuit.window = '' end
  end
  -- Reservations made under another layout stay charged: what they took from which limit is no longer known.
  return true
end

local function read_rest(cfg, stored, account)
  local circuit_size = account.v[cfg.lengths_at]
  local rest = cfg.size + 1
  if circuit_size > 0 and cfg.breaker then
    account.circuit = read_circuit(sub(stored, rest, rest + circuit_size - 1))
  end
  account.reservations = sub(stored, rest + circuit_size)
end

-- Read a state of this layout in which another window has begun.
local function roll_state(cfg, stored, account)
  local v, starts, later = account.v, { struct.unpack(cfg.starts_format, stored, cfg.ids_size + 1) }, nil
  cfg.read_values(v, stored)
  for i, limit in ipairs(cfg.calendars) do
    v[limit.at], later = calendar_count(limit, starts[i], v[limit.at])
    if later then keep_later_start(account, i, later) end
  end
end

-- Fill an account with what is stored of its subject, brought to the calendar windows of now: values in `v`, a `circuit`
-- if something ever failed, `reservations`; `fresh` when nothing is stored.
local function load_state(cfg, key, account, stored)
  stored = stored or redis.pcall('GET', key)
  account.key, account.fresh, account.circuit, account.reservations, account.later_starts = key, false, false, '', false
  if stored and #stored >= cfg.size then
    local current = find(stored, cfg.head, 1, true) == 1 -- makes no string, as sub would
    if current or find(stored, cfg.ids, 1, true) == 1 then
      if current then cfg.read_values(account.v, stored) else roll_state(cfg, stored, account) end
      if #stored > cfg.size then read_rest(cfg, stored, account) end
      return
    end
  end
  -- What is no string is an error reply, a table: another type under our key is like foreign data.
  if type(stored) == 'string' and adopt(cfg, stored, account) then return end
  account.fresh = true
  local v = account.v
  for i = 1, cfg.values do v[i] = 0 end
end

local last_lease -- 6_reservations.lua
local BREAKER_MEMORY = 7 * 86400000 -- failures of a slow caller are remembered over a week end
local EXECUTION_MEMORY = 7 * 86400000

local function end_of_spans(cfg, v, last)
  for _, limit in ipairs(cfg.spans) do
    if limit.kind == 'F' and v[limit.at + 1] > 0 then last = max(last, v[limit.at] + limit.period) end
    if limit.kind == 'R' then last = max(last, (v[limit.at] + ROLLING_STEPS + 1) * limit.step) end
  end
  return last
end

-- The instant after which nothing in the state matters, as a number and as text.
local function expiry(cfg, account, now)
  local v, last, text = account.v, cfg.calendar_end, cfg.calendar_text
  local known = last
  if cfg.has_spans then last = end_of_spans(cfg, v, last) end
  if cfg.spacing and v[cfg.spacing.at] > last then last = v[cfg.spacing.at] end
  if account.circuit then last = max(last, max(now, account.circuit.open_until) + BREAKER_MEMORY) end
  if account.reservations ~= '' then
    -- When a lease ends, units of an execution go back to a key of its own: until then it must be known whose they are.
    local memory = cfg.executions > 0 and EXECUTION_MEMORY or 0
    last = max(last, last_lease(account.reservations) + memory)
  end
  if last ~= known then text = format('%d', last) end
  return last, text
end

--@expiry production
local function store(key, packed, last_text)
  call('SET', key, packed, 'PXAT', last_text)
end

-- Let a key live until then at least.
local function prolong(key, last_text)
  call('PEXPIREAT', key, last_text, 'NX')
  call('PEXPIREAT', key, last_text, 'GT')
end
--@end

-- Register the subject for as long as its state lives, so that subjects can be counted.
local function register_subject(cfg, account, last, last_text, now)
  if account.v[cfg.subjects_at] < last then
    if account.fresh then call('ZREMRANGEBYSCORE', cfg.subjectsKey, '-inf', now) end
    account.v[cfg.subjects_at] = last
    call('ZADD', cfg.subjectsKey, last_text, account.key)
    prolong(cfg.subjectsKey, last_text)
  end
end

-- The head to store: the policy's own, or one with the window starts that a clock ahead of this has written.
local function head_of(cfg, account)
  if not account.later_starts then return cfg.head end
  local starts = {}
  for i, limit in ipairs(cfg.calendars) do starts[i] = account.later_starts[i] or limit.window_start end
  return cfg.ids .. struct.pack(cfg.starts_format, unpack(starts))
end

local function save_state(cfg, account, now)
  local last, last_text = expiry(cfg, account, now)
  if last <= now then -- nothing to remember
    if not account.fresh then call('DEL', account.key) end
    return
  end
  if cfg.maxSubjects then register_subject(cfg, account, last, last_text, now) end
  local v, reservations, circuit = account.v, account.reservations, ''
  if account.circuit then circuit = write_circuit(account.circuit) end
  v[cfg.lengths_at], v[cfg.lengths_at + 1] = #circuit, #reservations
  local packed = cfg.write(account.later_starts and head_of(cfg, account) or cfg.head, v)
  if circuit ~= '' or reservations ~= '' then packed = packed .. circuit .. reservations end
  store(account.key, packed, last_text)
end

-- Units used by one execution (a run that the caller names), per limit of period Execution. A key of its own: an
-- execution has no window, it is forgotten a week after its last call.
local function execution_key(key, execution) return key .. '\31x' .. execution end

local function load_execution(cfg, key, execution)
  local used = {}
  for i = 1, cfg.executions do used[i] = 0 end
  local stored = redis.pcall('GET', execution_key(key, execution))
  local count = type(stored) == 'string' and byte(stored, 1)
  if not count or #stored ~= 1 + count * 8 then return used end
  local width = #cfg.execution_prefix
  if sub(stored, 1, width) == cfg.execution_prefix then
    return { struct.unpack(cfg.execution_format, stored, width + 1) }
  end
  for i = 1, count do
    local id = sub(stored, 2 + (i - 1) * 4, 1 + i * 4)
    for j, name in ipairs(cfg.execution_ids) do
      if name == id then used[j] = struct.unpack('<I4', stored, 2 + count * 4 + (i - 1) * 4) end
    end
  end
  return used
end

local function save_execution(cfg, key, execution, used)
  local packed = cfg.execution_prefix .. struct.pack(cfg.execution_format, unpack(used, 1, cfg.executions))
  call('SET', execution_key(key, execution), packed, 'PX', EXECUTION_MEMORY)
end
