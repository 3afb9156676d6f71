-- One decision: every rule of every policy named is judged at one instant, then all are charged or none.

local REQUEST_MEMORY = 3600000 -- a repeated request gets its first verdict for an hour

-- The accounts of a call, a policy and a subject each; the first `n` of them count. Kept for the next call: making tables
-- anew costs more than the decision.
local accounts = {}

local function blank_account(i)
  local account = accounts[i]
  if not account then
    -- All fields are there from the start: Lua makes a table anew when a field that it lacks is set, even to nil.
    account = {
      cfg = false, key = '', v = {}, used = {}, fresh = false, circuit = false, reservations = '', later_starts = false,
      execution = false, execution_name = '', shadowed = false,
    }
    accounts[i] = account
  end
  return account
end

local function roll_spans(account, now)
  local v, used = account.v, account.used
  for i, limit in ipairs(account.cfg.limits) do
    if limit.kind == 'F' or limit.kind == 'R' then used[i] = rolls[limit.kind](limit, v, now) end
  end
end

-- Open an account, brought to `now`, ready to be judged; or return an error reply.
-- A charge (`writes`) must name its execution where a limit counts by it; a look may leave that limit out.
local function open_account(account, state_key, config_key, execution, now, writes, stored)
  local cfg, failure = configs[config_key], nil
  if not cfg or now >= cfg.checked + TRUST or now < cfg.checked then
    cfg, failure = stored_config(config_key, now)
    if not cfg then return failure end
  end
  if now >= cfg.windows_until or now < cfg.windows_from then enter_windows(cfg, now) end
  load_state(cfg, state_key, account, stored)
  if account.fresh and cfg.checked ~= now then
    local latest = nil
    latest, failure = stored_config(config_key, now)
    if not latest then return failure end
    if latest ~= cfg then return open_account(account, state_key, config_key, execution, now, writes) end
  end
  account.cfg, account.execution, account.shadowed = cfg, false, false
  if execution ~= '' and cfg.executions > 0 then
    account.execution, account.execution_name = load_execution(cfg, state_key, execution), execution
  end
  if cfg.has_spans then roll_spans(account, now) end
  if account.reservations ~= '' then
    expire_reservations(account, now, writes)
    if cfg.has_spans then roll_spans(account, now) end
  end
  return nil
end

-- Return an error reply where a policy counts by execution and the call names none.
local function lacks_execution(args, n)
  for i = 1, n do
    local cfg = accounts[i].cfg
    if cfg.executions > 0 and cfg.mode ~= 'Off' then
      return redis.error_reply('SKEXECUTION the policy in ' .. args[i] .. ' needs the name of the execution')
    end
  end
  return nil
end

-- Charge an admitted call to an account and return its permit.
local function charge_account(account, cost, now, microseconds)
  local cfg, v = account.cfg, account.v
  cfg.charge_limits(v, account.used, account.execution, cost, now)
  if cfg.spacing then v[cfg.spacing.at] = now + draw_gap(cfg.spacing, microseconds) end
  if not cfg.breaker then return '-' end
  if not account.circuit and cfg.breaker.override ~= 'ForcedOpen' then return '0' end
  return breaker_admits(cfg.breaker, account.circuit, now)
end

local function count_refusals(judgement, n)
  if not judgement.allowed then count_denial(accounts[judgement.policy].cfg, judgement.rule) end
  if not judgement.shadow then return end
  for i = 1, n do
    local account = accounts[i]
    local shadow = account.cfg.statistics.shadow
    for _, rule in ipairs(account.shadowed or {}) do shadow[rule] = (shadow[rule] or 0) + 1 end
  end
end

local function breaker_view(cfg, circuit)
  if not cfg.breaker then return 4 end
  if cfg.breaker.override == 'ForcedOpen' then return 3 end
  return circuit and circuit.state or 0
end

local function verdict(n, judgement, now, permit, next_call)
  local text, shadow, next_text = ALLOWED, NOTHING_SHADOWED, '0'
  if not judgement.allowed then
    text = head_of_denial(judgement.rule, judgement.reason, judgement.policy, judgement.retry)
  end
  if judgement.shadow then
    shadow = format(
      ',"shadow":["%s"],"replayed":false,"library":"%s","policies":[', concat(judgement.shadow, '","'), VERSION
    )
  end
  if next_call > 0 then next_text = format('%d', next_call) end
  text = text .. print_now(now) .. ',"permit":"' .. permit .. '","nextCallAt":' .. next_text .. shadow
  for i = 1, n do
    local account = accounts[i]
    local cfg, breaker = account.cfg, BREAKERS[breaker_view(account.cfg, account.circuit)]
    text = cfg.describe(text, breaker, account.v, account.used, account.execution, i == n and ']}' or ',')
  end
  return text
end

-- The first verdict of a repeated request, said to be that.
local function replay(text) return (text:gsub('"replayed":false', '"replayed":true', 1)) end

-- Open an account for each key; return an error reply where one cannot be. `stored` is the state of a single one, where
-- it was read before.
local function open_accounts(keys, args, n, execution, now, writes, stored)
  for i = 1, n do
    local failure = open_account(blank_account(i), keys[i], args[i], execution, now, writes, stored)
    if failure then return failure end
  end
  return nil
end

local function decide(n, cost, now)
  local judgement = new_judgement()
  for i = 1, n do judge(judgement, accounts[i], i, cost, now) end
  local before = judgement.allowed and 0 or nil
  while judgement.retry ~= before do -- until all policies are open at that instant
    before = judgement.retry
    for i = 1, n do judgement.retry = open_retry(accounts[i].cfg, judgement.retry) end
  end
  return judgement
end

local function whole_number(text, lowest)
  local number = tonumber(text)
  if number and number >= lowest and number <= UNITS and number == floor(number) then return number end
  return nil
end

-- Charge and store an admitted call; `identity` is that of a reservation, or ''. Return the permits, and when the spacing
-- admits the next call.
local function charge_accounts(n, cost, execution, identity, lease, now, microseconds)
  local permits, next_call = nil, 0
  for i = 1, n do
    local account, permit = accounts[i], '-'
    local cfg = account.cfg
    if cfg.mode ~= 'Off' then
      permit = charge_account(account, cost, now, microseconds)
      if identity ~= '' then reserve(account, identity, cost, now, lease, execution) end
      save_state(cfg, account, now)
      if account.execution then save_execution(cfg, account.key, execution, account.execution) end
      if cfg.spacing then next_call = max(next_call, account.v[cfg.spacing.at]) end
      if wants_use(cfg.statistics, account.key, now) then
        note_use(cfg.statistics, account.key, cfg.highest_ratio(account.v, account.used, account.execution), now)
      end
    end
    permits = permits and permits .. ',' .. permit or permit
  end
  return permits, next_call
end

local function charge_or_refuse(args, n, cost, execution, microseconds)
  local identity, lease, now = args[n + 4] or '', 0, floor(microseconds / 1000)
  if identity ~= '' then lease = whole_number(args[n + 5], 1) end
  if not lease or (identity ~= '' and #identity ~= 16) then
    return redis.error_reply('SKARGUMENT a reservation needs an identity of 16 characters and a lease in milliseconds')
  end
  local judgement = decide(n, cost, now)
  if judgement.allowed and identity ~= '' and not reservable(accounts, n) then
    refuse(judgement, accounts[1], 1, 'reservations', 'TooManyReservations', NEVER)
  end
  if not judgement.allowed or judgement.shadow then count_refusals(judgement, n) end
  if not judgement.allowed then return verdict(n, judgement, now, '', 0), false end
  local permits, next_call = charge_accounts(n, cost, execution, identity, lease, now, microseconds)
  return verdict(n, judgement, now, permits, next_call), true
end

-- The usual call, where it is one: its verdict, or nil and what is stored of the subject if that was read.
local function decide_usual(key, config_key, now, microseconds)
  local cfg = configs[config_key]
  if not cfg or not cfg.decide or now >= cfg.checked + TRUST or now < cfg.checked then return nil end
  if now >= cfg.windows_until or now < cfg.windows_from or now >= cfg.validUntil then return nil end
  local active = cfg.active
  if active and not (active.open_from and now >= active.open_from and now < active.open_until) then return nil end
  local stored = redis.pcall('GET', key)
  if not stored or #stored ~= cfg.size then return nil, stored end
  local is_current = find(stored, cfg.head, 1, true) == 1
  if not is_current and find(stored, cfg.ids, 1, true) ~= 1 then return nil, stored end
  return cfg.decide(key, stored, is_current, now, print_now(now), microseconds), stored
end

-- KEYS: a state key for each policy. ARGV: a config key for each, then cost (1 where there is none), execution, request,
-- and for a reservation its identity (16 characters) and its lease in milliseconds.
local function acquire(keys, args)
  local n, microseconds, stored = #keys, now_microseconds(), nil
  local now = floor(microseconds / 1000)
  if #args == 1 and n == 1 then
    local reply = nil
    reply, stored = decide_usual(keys[1], args[1], now, microseconds)
    if reply then return reply end
  end
  local cost, execution, request = args[n + 1] or '1', args[n + 2] or '', args[n + 3] or ''
  cost = cost == '1' and 1 or whole_number(cost, 1)
  if not cost then return redis.error_reply('SKARGUMENT cost must be a whole number of at least 1') end
  local request_key = request ~= '' and keys[1] .. '\31r' .. request
  local first = request_key and call('GET', request_key)
  if first then return replay(first) end
  local failure = open_accounts(keys, args, n, execution, now, true, stored)
    or (execution == '' and lacks_execution(args, n))
  if failure then return failure end
  local reply, charged = charge_or_refuse(args, n, cost, execution, microseconds)
  if charged and request_key then call('SET', request_key, reply, 'PX', REQUEST_MEMORY) end
  return reply
end

-- The verdict that acquire would give, without charging. KEYS and ARGV as acquire, up to execution.
local function peek(keys, args)
  local n = #keys
  local cost = whole_number(args[n + 1], 0)
  if not cost then return redis.error_reply('SKARGUMENT cost must be a whole number') end
  local now = floor(now_microseconds() / 1000)
  local failure = open_accounts(keys, args, n, args[n + 2] or '', now, false)
  if failure then return failure end
  return verdict(n, decide(n, max(cost, 1), now), now, '', 0)
end
