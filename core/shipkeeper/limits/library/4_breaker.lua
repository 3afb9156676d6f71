-- Circuit breaker: closed, open, half-open. Only a report or the admission of a probe changes it. Each change takes a
-- new generation, and a report that carries an older one is dropped: a late result of an earlier round counts nothing.

local CLOSED, OPEN, HALF_OPEN = 0, 1, 2
local TRIPS = { ConsecutiveFailures = 1, FailureRate = 2, SlowCalls = 3, ProbeFailed = 4 }
local PERMIT = 10 -- bytes: number of the permit 4, expiry 6
local PARTS = 10 -- of a window by time

-- Values of the record, from its place: +0 state, +1 generation, +2 since, +3 open until, +4 openings in a row,
-- +5 consecutive failures, +6 probes that succeeded, +7 last permit, +8 last trip.

-- Generations begin with the clock, so that they never repeat, even after the state was forgotten.
local function next_generation(v, at, now)
  v[at + 1] = max(v[at + 1] + 1, floor(now / 1000) % 4294967295)
  v[at + 2] = now
end

-- Drop the permits of probes that did not report in time (their owner died); return how many are out, and the first
-- instant at which one comes back.
local function live_permits(state, now)
  local kept, count, first = {}, 0, huge
  for i = 1, #state.permits, PERMIT do
    local expires = struct.unpack('<I6', state.permits, i + 4)
    if expires > now then
      count = count + 1
      kept[count] = sub(state.permits, i, i + PERMIT - 1)
      first = min(first, expires)
    end
  end
  state.permits = table.concat(kept)
  return count, first
end

-- Whether a call may pass now: nil, or a reason and the instant from which it would (-1: time does not help).
local function breaker_refuses(b, state, now)
  if b.override == 'ForcedOpen' then return 'CircuitForcedOpen', -1 end
  local v, at = state.v, b.at
  if v[at] == CLOSED then return nil end
  if v[at] == OPEN then
    if now < v[at + 3] then return 'CircuitOpen', v[at + 3] end
    return nil
  end
  local count, first = live_permits(state, now)
  if count >= b.permits then return 'ProbeUnderWay', first end
  return nil
end

-- Admit a call: return the permit that its report must carry.
local function breaker_admits(b, state, now)
  local v, at = state.v, b.at
  if b.override == 'ForcedOpen' then return '-' end
  if v[at + 1] == 0 then next_generation(v, at, now) end
  if v[at] == OPEN and now >= v[at + 3] then
    next_generation(v, at, now)
    v[at], v[at + 6], v[at + 7] = HALF_OPEN, 0, 0
    state.permits = ''
  end
  if v[at] ~= HALF_OPEN or live_permits(state, now) >= b.permits then return string.format('%d', v[at + 1]) end
  v[at + 7] = v[at + 7] + 1
  state.permits = state.permits .. struct.pack('<I4I6', v[at + 7], now + b.permitTimeout)
  return string.format('%d.%d', v[at + 1], v[at + 7])
end

local function open_circuit(b, state, trip, now)
  local v, at = state.v, b.at
  next_generation(v, at, now)
  v[at] = OPEN
  v[at + 4] = min(v[at + 4] + 1, 65535)
  v[at + 3] = now + min(b.openMax, floor(b.openInitial * b.openMultiplier ^ min(v[at + 4] - 1, 50)))
  v[at + 5], v[at + 6], v[at + 8] = 0, 0, TRIPS[trip]
  state.window, state.permits = '', ''
end

local function close_circuit(b, state, now)
  local v, at = state.v, b.at
  next_generation(v, at, now)
  v[at], v[at + 3], v[at + 4], v[at + 5], v[at + 6] = CLOSED, 0, 0, 0, 0
  state.window, state.permits = '', ''
end

-- A window by count: one byte for each call, 1 failed, 2 slow, 3 both.
local function count_last_calls(b, state, failed, slow)
  state.window = sub(state.window .. string.char((failed and 1 or 0) + (slow and 2 or 0)), -b.windowSize)
  local _, failures = state.window:gsub('[\1\3]', '')
  local _, slows = state.window:gsub('[\2\3]', '')
  return #state.window, failures, slows
end

-- A window by time: the number of its newest part, then calls, failures and slow calls of ten parts, newest first.
local function count_recent_calls(b, state, failed, slow, now)
  local part = floor(now * PARTS / b.windowDuration)
  local parts = {}
  local newest = #state.window > 0 and struct.unpack('<I6', state.window) or part
  part = max(part, newest)
  local old = #state.window > 0 and { struct.unpack('<' .. rep('I4', PARTS * 3), state.window, 7) } or {}
  local calls, failures, slows = 0, 0, 0
  for i = 0, PARTS - 1 do
    local source = (i - (part - newest)) * 3
    for j = 1, 3 do parts[i * 3 + j] = source >= 0 and old[source + j] or 0 end
    if i == 0 then
      parts[1] = parts[1] + 1
      parts[2] = parts[2] + (failed and 1 or 0)
      parts[3] = parts[3] + (slow and 1 or 0)
    end
    calls, failures, slows = calls + parts[i * 3 + 1], failures + parts[i * 3 + 2], slows + parts[i * 3 + 3]
  end
  state.window = struct.pack('<I6' .. rep('I4', PARTS * 3), part, unpack(parts, 1, PARTS * 3))
  return calls, failures, slows
end

local function reason_to_trip(b, state, failed, slow, now)
  local failures_in_a_row = state.v[b.at + 5]
  if b.windowSize or b.windowDuration then
    local calls, failures, slows
    if b.windowSize then
      calls, failures, slows = count_last_calls(b, state, failed, slow)
    else
      calls, failures, slows = count_recent_calls(b, state, failed, slow, now)
    end
    if calls >= b.minimumCalls then
      if b.failureRate and failures * 100 >= b.failureRate * calls then return 'FailureRate' end
      if b.slowRate and slows * 100 >= b.slowRate * calls then return 'SlowCalls' end
    end
  end
  if b.consecutive and failures_in_a_row >= b.consecutive then return 'ConsecutiveFailures' end
  return nil
end

-- Take the permit out of the list; false when it is not there (expired, or already reported).
local function take_permit(state, number)
  for i = 1, #state.permits, PERMIT do
    if struct.unpack('<I4', state.permits, i) == number then
      state.permits = sub(state.permits, 1, i - 1) .. sub(state.permits, i + PERMIT)
      return true
    end
  end
  return false
end

-- Take in the result of one call. Return whether it counted, and whether the state must be saved.
local function breaker_takes(b, state, permit, outcome, duration, now)
  local v, at = state.v, b.at
  local generation, number = permit:match('^(%d+)%.?(%d*)$')
  if tonumber(generation) ~= v[at + 1] or v[at] == OPEN then return false end
  local failed = outcome == 'Failure'
  local slow = b.slowerThan and duration >= b.slowerThan or false
  if v[at] == HALF_OPEN then
    live_permits(state, now)
    if number == '' or not take_permit(state, tonumber(number)) then return false end
    if outcome == 'Released' then return true end
    if failed or slow then
      open_circuit(b, state, 'ProbeFailed', now)
    else
      v[at + 6] = v[at + 6] + 1
      if v[at + 6] >= b.successThreshold then close_circuit(b, state, now) end
    end
    return true
  end
  if outcome == 'Released' then return true end
  v[at + 5] = failed and min(v[at + 5] + 1, 65535) or 0
  local trip = reason_to_trip(b, state, failed, slow, now)
  if trip then open_circuit(b, state, trip, now) end
  return true
end
