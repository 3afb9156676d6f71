-- Configuration: what the operator compiled, decoded once per version and kept.
--
-- A config key holds "<40 hex: SHA-1 of the body> <13 digits: instant of the last loss of state> <body>". Each call
-- reads only that header; the body is fetched and decoded when the header is a new one.
-- All instants are milliseconds since 1970-01-01 UTC. This library knows no calendar: the body holds tables.

local VERSION = '@VERSION@'
local HEADER = 55 -- 40 + 1 + 13 + 1
local HEADER_END = '54' -- as text: Redis would format a number anew for each call
local ROLLING_STEPS = 16

-- Redis gives a library its globals when a function is called, not yet while it is loaded.
local floor, max, min, huge, sub, byte, rep, call
local FIELDS -- fields of a state record, by kind, as struct.pack writes them

local function initialize()
  floor, max, min, huge = math.floor, math.max, math.min, math.huge
  sub, byte, rep, call = string.sub, string.byte, string.rep, redis.call
  FIELDS = {
    C = 'I6I4', -- calendar: start of the window, units used
    F = 'I6I4', -- first use: the same
    R = 'I6' .. rep('I4', ROLLING_STEPS + 1), -- rolling: number of the newest step, units in it and in the 16 before
    T = 'I8', -- burst: theoretical arrival time, in microseconds
    S = 'I6', -- spacing: instant of the next admitted call
    N = 'I6', -- instant up to which the subject is registered
    Z = 'I2I2', -- lengths of what follows the values: circuit, reservations
  }
end

--@clock production
local function now_microseconds()
  local t = call('TIME')
  return t[1] * 1000000 + t[2]
end
--@end

local configs = {} -- config key -> the decoded configuration, for its header
local statistics = {} -- config key -> {denied = {rule -> calls}, shadow = {rule -> calls}, busy = {state key -> use}}

-- Four bytes that stand for a limit's name in a subject's state.
local function limit_id(name)
  local hex = sub(redis.sha1hex(name), 1, 8)
  return (hex:gsub('..', function(pair) return string.char(tonumber(pair, 16)) end))
end

local WIDTH = { C = 2, F = 2, R = ROLLING_STEPS + 2, T = 1, S = 1, N = 1, Z = 2 }

-- Lay out a state: which records in which order, each with the place of its first value.
local function lay_out(cfg)
  local records, prefix, format, place = {}, {}, { '<' }, 1
  local function record(kind, name)
    records[#records + 1] = { kind = kind, id = kind .. limit_id(name), place = place }
    prefix[#prefix + 1] = kind .. limit_id(name)
    format[#format + 1] = FIELDS[kind]
    place = place + WIDTH[kind]
    return place - WIDTH[kind]
  end
  for _, limit in ipairs(cfg.limits) do
    if limit.kind ~= 'X' then
      -- Steps of another length mean nothing to a rolling limit, so its period is part of the identity.
      if limit.kind ~= 'C' then cfg.has_spans = true end
      limit.at = record(limit.kind, limit.kind == 'R' and limit.name .. '/' .. limit.period or limit.name)
      if limit.burst then
        limit.burst_at = record('T', limit.name)
        limit.interval = math.ceil(limit.period * 1000 / limit.amount) -- microseconds for one unit to come back
      end
    end
  end
  if cfg.spacing then cfg.spacing.at = record('S', '') end
  if cfg.maxSubjects then cfg.subjects_at = record('N', '') end
  cfg.lengths_at = record('Z', '')
  cfg.records = records
  cfg.prefix = string.char(#records) .. table.concat(prefix)
  cfg.format = table.concat(format)
  cfg.whole_format = '<c' .. #cfg.prefix .. sub(cfg.format, 2)
  cfg.size = struct.size(cfg.format)
  cfg.values = place - 1
  cfg.count = #cfg.limits
end

-- The end of a reservation's record in a state: 6_reservations.lua.
local RESERVATION = 32 -- bytes: identity 16, end of the lease 6, cost 4, charged at 6

local function lay_out_executions(cfg)
  local names, count = {}, 0
  for _, limit in ipairs(cfg.limits) do
    if limit.kind == 'X' then
      count = count + 1
      limit.at = count
      names[count] = limit_id(limit.name)
    end
  end
  cfg.executions = count
  if count > 0 then
    cfg.execution_prefix = string.char(count) .. table.concat(names)
    cfg.execution_format = '<' .. rep('I4', count)
    cfg.execution_ids = names
  end
end

local function decode(key, header)
  local stored = call('GET', key)
  local body = sub(stored, HEADER + 1)
  if redis.sha1hex(body) ~= sub(header, 1, 40) then
    return nil, redis.error_reply('SKCONFIG the policy in ' .. key .. ' does not match its hash')
  end
  local cfg = cjson.decode(body)
  cfg.header = header
  cfg.hash = sub(header, 1, 40)
  cfg.loss = tonumber(sub(header, 42, 54))
  cfg.loss_denies = cfg.onStateLoss == 'DenyUntilNextWindow' and cfg.loss > 0
  lay_out(cfg)
  lay_out_executions(cfg)
  statistics[key] = statistics[key] or { denied = {}, shadow = {}, busy = {}, tracked = 0, floor = 0, floor_until = 0 }
  cfg.statistics = statistics[key]
  configs[key] = cfg
  return cfg
end

-- Return the configuration of a policy, or nil and an error reply.
local function load_config(key)
  local header = call('GETRANGE', key, '0', HEADER_END)
  local cfg = configs[key]
  if cfg and cfg.header == header then return cfg end
  if #header < HEADER then
    configs[key], statistics[key] = nil, nil
    return nil, redis.error_reply('SKNOCONFIG no policy in ' .. key)
  end
  return decode(key, header)
end
