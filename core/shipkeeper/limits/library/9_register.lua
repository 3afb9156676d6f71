-- The functions as programs call them.

local OUTCOMES = { Success = true, Failure = true, Released = true }

-- The result of a call that acquire admitted. KEYS: a state key for each policy. ARGV: a config key for each, then the
-- verdict's permit, the outcome (Success, Failure, Released) and the call's duration in milliseconds.
-- Reply: for each policy whether it counted (0 or 1), the breaker's state, and until when it is open.
local function report(keys, args)
  local n = #keys
  local permits, outcome, duration = args[n + 1] or '', args[n + 2], tonumber(args[n + 3] or '0') or 0
  if not OUTCOMES[outcome] then
    return redis.error_reply('SKARGUMENT the outcome must be Success, Failure or Released')
  end
  local now, reply, i = floor(now_microseconds() / 1000), {}, 0
  for permit in permits:gmatch('[^,]+') do
    i = i + 1
    if i > n then break end
    local account, counted = blank_account(i), false
    local failure = open_account(account, keys[i], args[i], '', now, true)
    if failure then return failure end
    local cfg = account.cfg
    if cfg.breaker and permit:find('^%d+%.?%d*$') then
      counted = breaker_takes(cfg.breaker, account, permit, outcome, duration, now)
      if counted then save_state(cfg, account, now) end
    end
    reply[#reply + 1] = counted and 1 or 0
    reply[#reply + 1] = breaker_view(cfg, account.circuit)
    reply[#reply + 1] = account.circuit and account.circuit.open_until or 0
  end
  return reply
end

-- End a reservation. Both: KEYS as acquire; ARGV: a config key for each, then the reservation's identity, the execution
-- it named (the reservation knows it too), and (to give up a breaker's permit as well) the verdict's permit.
-- Reply: Committed, Cancelled, or Unknown: it was ended before, or its lease ran out and its units are back.
local function settle(keys, args, commits)
  local n = #keys
  local identity, permits = args[n + 1] or '', args[n + 3] or ''
  local now, found = floor(now_microseconds() / 1000), false
  local failure = open_accounts(keys, args, n, '', now, true)
  if failure then return failure end
  for i = 1, n do
    local account = accounts[i]
    local cost, charged_at, of_execution = take_reservation(account, identity)
    if cost then
      found = true
      if not commits then
        give_back(account, cost, charged_at, now)
        give_back_execution(account, of_execution, cost, true)
      end
      save_state(account.cfg, account, now)
    end
  end
  if found and not commits and permits ~= '' then
    local arguments = {}
    for i = 1, n do arguments[i] = args[i] end
    arguments[n + 1], arguments[n + 2] = permits, 'Released'
    report(keys, arguments)
  end
  if not found then return redis.status_reply('Unknown') end
  return redis.status_reply(commits and 'Committed' or 'Cancelled')
end

local function commit(keys, args) return settle(keys, args, true) end
local function cancel(keys, args) return settle(keys, args, false) end

local function pairs_of(counts)
  local flat = {}
  for rule, calls in pairs(counts) do
    flat[#flat + 1] = rule
    flat[#flat + 1] = calls
  end
  return flat
end

-- What this server would use to judge. KEYS: none. ARGV: a config key. Reply: library version, hash computed over the
-- stored policy ('' when there is none or it is damaged), instant of the last loss, now, valid until, denials and
-- shadow denials by rule since the library was loaded, and the state keys of the subjects nearest to a limit.
local function status(keys, args)
  local now = floor(now_microseconds() / 1000)
  local cfg = stored_config(args[1], now)
  if not cfg then return { VERSION, '', 0, now, 0, {}, {}, {} } end
  -- The header alone was compared: hash what is really stored.
  local hash = redis.sha1hex(sub(call('GET', args[1]), HEADER + 1))
  local s, busy = cfg.statistics, {}
  for key in pairs(s.busy) do busy[#busy + 1] = key end
  return { VERSION, hash, cfg.loss, now, cfg.validUntil, pairs_of(s.denied), pairs_of(s.shadow), busy }
end

-- The circuit breaker of a subject. KEYS: a state key. ARGV: a config key. Reply: state, since, open until, permits in
-- use, consecutive failures, last trip.
local function circuit(keys, args)
  local account, now = blank_account(1), floor(now_microseconds() / 1000)
  local failure = open_account(account, keys[1], args[1], '', now, false)
  if failure then return failure end
  if not account.cfg.breaker then return {} end
  local c, view = account.circuit, breaker_view(account.cfg, account.circuit)
  if not c then return { view, 0, 0, 0, 0, 0 } end
  local permits = live_permits(c, now)
  return { view, c.since, c.open_until, permits, c.failures, c.trip }
end

local function version() return VERSION end

local function register(name, callback, flags)
  redis.register_function({
    function_name = 'shipkeeper_' .. name,
    callback = function(keys, args)
      if not floor then initialize() end
      return callback(keys, args)
    end,
    flags = flags,
  })
end

register('acquire', acquire, {})
register('report', report, {})
register('commit', commit, {})
register('cancel', cancel, {})
register('peek', peek, { 'no-writes' })
register('status', status, { 'no-writes' })
register('circuit', circuit, { 'no-writes' })
register('version', version, { 'no-writes' })
