-- Circuit breaker: closed, open, half-open. Only a report or the admission of a probe changes it. Each change takes a
-- new generation, and a report that carries an older one is dropped: a late result of an earlier round counts nothing.

local CLOSED, OPEN, HALF_OPEN = 0, 1, 2
local TRIPS = { ConsecutiveFailures = 1, FailureRate = 2, SlowCalls = 3, ProbeFailed = 4 }
local PERMIT = 10 -- bytes: number of the permit 4, expiry 6
local PARTS = 10 -- of a window by time

-- A circuit that never failed is not stored at all: it is closed, of generation 0. Later generations begin with the
-- clock, so that they never repeat, even after the state was forgotten.
local function next_generation(circuit, now)
  circuit.generation = max(circuit.generation + 1, floor(now / 1000) % 4294967295)
  circuit.since = now
end

-- Drop the permits of probes that did not report in time (their owner died); return how many are out, and the instants
-- at which they come back.
local function live_permits(circuit, now)
  local kept, expiries = {}, {}
  for i = 1, #circuit.permits, PERMIT do
    local expires = struct.unpack('<I6', circuit.permits, i + 4)
    if expires > now then
      kept[#kept + 1], expiries[#expiries + 1] = sub(circuit.permits, i, i + PERMIT - 1), expires
    end
  end
  circuit.permits = concat(kept)
  return #kept, expiries
end

-- Whether a call may pass now: nil, or a reason and the instant from which it would (-1: time does not help).
local function breaker_refuses(b, circuit, now)
  if b.override == 'ForcedOpen' then return 'CircuitForcedOpen', -1 end
  if not circuit or circuit.state == CLOSED then return nil end
  if circuit.state == OPEN then
    if now < circuit.open_until then return 'CircuitOpen', circuit.open_until end
    return nil
  end
  local count, expiries = live_permits(circuit, now)
  if count >= b.permits then
    table.sort(expiries)
    return 'ProbeUnderWay', expiries[count - b.permits + 1] -- fewer permits than are out, after an edit
  end
  return nil
end

-- Admit a call: return the permit that its report must carry.
local function breaker_admits(b, circuit, now)
  if b.override == 'ForcedOpen' then return '-' end
  if not circuit then return '0' end
  if circuit.state == OPEN and now >= circuit.open_until then
    next_generation(circuit, now)
    circuit.state, circuit.successes, circuit.last_permit, circuit.permits = HALF_OPEN, 0, 0, ''
  end
  if circuit.state ~= HALF_OPEN or live_permits(circuit, now) >= b.permits then
    return string.format('%d', circuit.generation)
  end
  circuit.last_permit = circuit.last_permit + 1
  circuit.permits = circuit.permits .. struct.pack('<I4I6', circuit.last_permit, now + b.permitTimeout)
  return string.format('%d.%d', circuit.generation, circuit.last_permit)
end

local function open_circuit(b, circuit, trip, now)
  next_generation(circuit, now)
  circuit.openings = min(circuit.openings + 1, 65535)
  local open_time = floor(b.openInitial * b.openMultiplier ^ min(circuit.openings - 1, 50))
  circuit.state, circuit.open_until, circuit.trip = OPEN, now + min(b.openMax, open_time), TRIPS[trip]
  circuit.failures, circuit.successes, circuit.window, circuit.permits = 0, 0, '', ''
end

local function close_circuit(circuit, now)
  next_generation(circuit, now)
  circuit.state, circuit.open_until, circuit.openings = CLOSED, 0, 0
  circuit.failures, circuit.successes, circuit.window, circuit.permits = 0, 0, '', ''
end

-- A window by count: one byte for each call, 1 failed, 2 slow, 3 both.
local function count_last_calls(b, circuit, failed, slow)
  circuit.window = sub(circuit.window .. string.char((failed and 1 or 0) + (slow and 2 or 0)), -b.windowSize)
  local _, failures = circuit.window:gsub('[\1\3]', '')
  local _, slows = circuit.window:gsub('[\2\3]', '')
  return #circuit.window, failures, slows
end

-- A window by time: the number of its newest part, then calls, failures and slow calls of ten parts, newest first.
local function count_recent_calls(b, circuit, failed, slow, now)
  local part = floor(now * PARTS / b.windowDuration)
  local parts = {}
  local newest = #circuit.window > 0 and struct.unpack('<I6', circuit.window) or part
  part = max(part, newest)
  local old = #circuit.window > 0 and { struct.unpack('<' .. rep('I4', PARTS * 3), circuit.window, 7) } or {}
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
  circuit.window = struct.pack('<I6' .. rep('I4', PARTS * 3), part, unpack(parts, 1, PARTS * 3))
  return calls, failures, slows
end

local function reason_to_trip(b, circuit, failed, slow, now)
  if b.windowSize or b.windowDuration then
    local calls, failures, slows
    if b.windowSize then
      calls, failures, slows = count_last_calls(b, circuit, failed, slow)
    else
      calls, failures, slows = count_recent_calls(b, circuit, failed, slow, now)
    end
    if calls >= b.minimumCalls then
      if b.failureRate and failures * 100 >= b.failureRate * calls then return 'FailureRate' end
      if b.slowRate and slows * 100 >= b.slowRate * calls then return 'SlowCalls' end
    end
  end
  if b.consecutive and circuit.failures >= b.consecutive then return 'ConsecutiveFailures' end
  return nil
end

-- Take the permit out of the list; false when it is not there (expired, or already reported).
local function take_permit(circuit, number)
  for i = 1, #circuit.permits, PERMIT do
    if struct.unpack('<I4', circuit.permits, i) == number then
      circuit.permits = sub(circuit.permits, 1, i - 1) .. sub(circuit.permits, i + PERMIT)
      return true
    end
  end
  return false
end

local function probe_reports(b, circuit, number, outcome, failed, now)
  live_permits(circuit, now)
  if number == '' or not take_permit(circuit, tonumber(number)) then return false end
  if outcome == 'Released' then return true end
  if failed then
    open_circuit(b, circuit, 'ProbeFailed', now)
  else
    circuit.successes = circuit.successes + 1
    if circuit.successes >= b.successThreshold then close_circuit(circuit, now) end
  end
  return true
end

-- Take in the result of one call; the state's circuit is changed. Return whether it counted.
local function breaker_takes(b, state, permit, outcome, duration, now)
  local circuit = state.circuit or new_circuit(now)
  local generation, number = permit:match('^(%d+)%.?(%d*)$')
  if tonumber(generation) ~= circuit.generation or circuit.state == OPEN then return false end
  local failed = outcome == 'Failure'
  local slow = b.slowerThan and duration >= b.slowerThan or false
  if circuit.state == HALF_OPEN then return probe_reports(b, circuit, number, outcome, failed or slow, now) end
  if outcome == 'Released' then return true end
  circuit.failures = failed and min(circuit.failures + 1, 65535) or 0
  local trip = reason_to_trip(b, circuit, failed, slow, now)
  if trip then open_circuit(b, circuit, trip, now) end
  -- As good as new: nothing to store.
  local is_new = circuit.generation == 0 and circuit.failures == 0 and circuit.window == ''
  state.circuit = not is_new and circuit or nil
  return true
end
