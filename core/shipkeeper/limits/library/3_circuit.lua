-- Circuit: the stored form of a breaker that has seen a failure.

local CIRCUIT = '<BI4I6I6I2I2I2I4BI2'

local function new_circuit(now)
  return {
    state = 0, generation = 0, since = now, open_until = 0, openings = 0, failures = 0, successes = 0,
    last_permit = 0, trip = 0, window = '', permits = '',
  }
end

local function read_circuit(stored)
  if #stored == 0 then return nil end
  local c, length, rest = {}, nil, nil
  c.state, c.generation, c.since, c.open_until, c.openings, c.failures, c.successes, c.last_permit, c.trip, length, rest =
    struct.unpack(CIRCUIT, stored)
  c.window, c.permits = sub(stored, rest, rest + length - 1), sub(stored, rest + length)
  return c
end

local function write_circuit(c)
  return struct.pack(
    CIRCUIT, c.state, c.generation, c.since, c.open_until, c.openings, c.failures, c.successes, c.last_permit, c.trip,
    #c.window
  ) .. c.window .. c.permits
end
