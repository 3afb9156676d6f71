-- Configuration: what the operator compiled, decoded once per version and kept.
--
-- A config key holds "<40 hex: SHA-1 of the body> <13 digits: instant of the last loss of state> <body>". The header
-- tells whether the policy that is kept is still the one that is stored.
-- All instants are milliseconds since 1970-01-01 UTC. This library knows no calendar: the body holds tables.

local VERSION = '@VERSION@'
local HEADER = 55 -- 40 + 1 + 13 + 1
local HEADER_END = '54' -- as text: Redis would format a number anew for each call
-- Milliseconds for which a policy is used without a look at its header. A subject without a state makes it look at once, so
-- that the first call after a loss of all data already notices.
local TRUST = 1000
local ROLLING_STEPS = 16

-- Redis gives a library its globals when a function is called, not yet while it is loaded.
local floor, max, min, huge, sub, byte, rep, format, find, call, concat
local FIELDS -- fields of a state record, by kind, as struct.pack writes them

local function initialize()
  floor, max, min, huge = math.floor, math.max, math.min, math.huge
  sub, byte, rep, format, find = string.sub, string.byte, string.rep, string.format, string.find
  call, concat = redis.call, table.concat
  FIELDS = {
    W = 'I4', -- window of the calendar: units used; its start is in the head
    F = 'I6I4', -- first use: start of the window, units used
    R = 'I6' .. rep('I4', ROLLING_STEPS + 1), -- rolling: number of the newest step, units in it and in the 16 before
    T = 'I8', -- burst: theoretical arrival time, in microseconds
    B = '', -- breaker: stands for the kind of window that its circuit counts in
    S = 'I6', -- spacing: instant of the next admitted call
    N = 'I6', -- instant up to which the subject is registered
    Z = 'I2I2', -- lengths of what follows the values: circuit, reservations
  }
end

--@clock production
local second_text, second = '', 0

local function now_microseconds()
  local t = call('TIME')
  if t[1] ~= second_text then second_text, second = t[1], t[1] * 1000000 end
  return second + t[2]
end
--@end

local configs = {} -- config key -> the decoded configuration, for its header
local statistics = {} -- config key -> {denied = {rule -> calls}, shadow = {rule -> calls}, busy = {state key -> use}}

-- Four bytes that stand for a limit's name in a subject's state.
local function limit_id(name)
  local hex = sub(redis.sha1hex(name), 1, 8)
  return (hex:gsub('..', function(pair) return string.char(tonumber(pair, 16)) end))
end

local WIDTH = { W = 1, F = 2, R = ROLLING_STEPS + 2, T = 1, B = 0, S = 1, N = 1, Z = 2 }

-- Lay out a state: which records in which order, each with the place of its first value.
local function lay_out(cfg)
  local records, ids, formats, place = {}, {}, {}, 1
  local function record(kind, name)
    records[#records + 1] = { kind = kind, id = kind .. limit_id(name), place = place }
    ids[#ids + 1], formats[#formats + 1] = kind .. limit_id(name), FIELDS[kind]
    place = place + WIDTH[kind]
    return place - WIDTH[kind]
  end
  cfg.calendars, cfg.spans = {}, {}
  local definitions = {}
  for i, limit in ipairs(cfg.limits) do
    definitions[i] = limit.name .. limit.kind .. (limit.window or limit.period or '')
    if limit.kind ~= 'X' then
      -- Steps of another length mean nothing to a rolling limit, so its period is part of the identity.
      local name = limit.kind == 'R' and limit.name .. '/' .. limit.period or limit.name
      limit.at = record(limit.kind == 'C' and 'W' or limit.kind, name)
      records[#records].limit = limit
      if limit.burst then
        limit.interval = math.ceil(limit.period * 1000 / limit.amount) -- microseconds for one unit to come back
        limit.burst_at = record('T', limit.name .. '/' .. limit.interval)
      end
      local group = limit.kind == 'C' and cfg.calendars or cfg.spans
      group[#group + 1] = limit
    end
  end
  if cfg.spacing then cfg.spacing.at = record('S', '') end
  if cfg.maxSubjects then cfg.subjects_at = record('N', '') end
  if cfg.breaker then
    record('B', (cfg.breaker.windowSize and 'calls' or '') .. (cfg.breaker.windowDuration or ''))
    cfg.circuit_id = records[#records].id
  end
  -- Reservations say what they took by its place, so they hold for these very limits.
  cfg.lengths_at = record('Z', concat(definitions, '\n'))
  cfg.records = records
  cfg.ids = string.char(#records) .. concat(ids)
  cfg.format = concat(formats)
  cfg.ids_size = #cfg.ids
  cfg.starts_format = '<' .. rep('I6', #cfg.calendars)
  cfg.head_size = cfg.ids_size + 6 * #cfg.calendars
  cfg.size = cfg.head_size + struct.size('<' .. cfg.format)
  cfg.values = place - 1
  cfg.count = #cfg.limits
  cfg.has_spans = #cfg.spans > 0
end

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
    cfg.execution_prefix = string.char(count) .. concat(names)
    cfg.execution_format = '<' .. rep('I4', count)
    cfg.execution_ids = names
  end
end

local specialize -- 7_rules.lua

local function decode(key, header)
  local body = sub(call('GET', key), HEADER + 1)
  if redis.sha1hex(body) ~= sub(header, 1, 40) then
    return nil, redis.error_reply('SKCONFIG the policy in ' .. key .. ' does not match its hash')
  end
  local cfg = cjson.decode(body)
  for _, limit in ipairs(cfg.limits) do
    if not limit.name:find('^[%w-]+$') then -- names become part of code and of verdicts
      return nil, redis.error_reply('SKCONFIG the policy in ' .. key .. ' has a limit of an impossible name')
    end
  end
  cfg.header = header
  cfg.hash = sub(header, 1, 40)
  cfg.loss = tonumber(sub(header, 42, 54))
  cfg.loss_denies = cfg.onStateLoss == 'DenyUntilNextWindow' and cfg.loss > 0
  lay_out(cfg)
  lay_out_executions(cfg)
  statistics[key] = statistics[key] or { denied = {}, shadow = {}, busy = {}, tracked = 0, floor = 0, floor_until = 0 }
  cfg.statistics = statistics[key]
  specialize(cfg)
  configs[key] = cfg
  return cfg
end

-- Return the policy that is stored, or nil and an error reply.
local function stored_config(key, now)
  local header = call('GETRANGE', key, '0', HEADER_END)
  local cfg, failure = configs[key], nil
  if #header < HEADER then
    configs[key], statistics[key] = nil, nil
    return nil, redis.error_reply('SKNOCONFIG no policy in ' .. key)
  end
  if not cfg or cfg.header ~= header then
    cfg, failure = decode(key, header)
    if not cfg then return nil, failure end
  end
  cfg.checked = now
  return cfg
end
