-- One decision: every rule of every policy named is judged at one instant, then all are charged or none.

local NEVER = -1
local REQUEST_MEMORY = 3600000 -- a repeated request gets its first verdict for an hour

-- A policy and a subject, brought to `now`, ready to be judged.
-- A charge must name its execution where a limit counts by it; a look (`required` false) may leave that limit out.
local function open_account(state_key, config_key, execution, now, required)
  local cfg, failure = load_config(config_key)
  if not cfg then return nil, failure end
  local state = load_state(cfg, state_key)
  local account = { cfg = cfg, state = state, used = {} }
  if cfg.executions > 0 and cfg.mode ~= 'Off' then
    if execution ~= '' then
      account.execution = load_execution(cfg, state_key, execution)
    elseif required then
      return nil, redis.error_reply('SKEXECUTION the policy in ' .. config_key .. ' needs the name of the execution')
    end
  end
  if now >= cfg.validUntil then return account end
  local expired = #state.reservations > 0
  for i, limit in ipairs(cfg.limits) do
    if limit.kind == 'X' then
      account.used[i] = account.execution and account.execution[limit.at] or 0
    else
      account.used[i] = rolls[limit.kind](limit, state.v, now)
    end
  end
  if expired then
    expire_reservations(cfg, state, now)
    for i, limit in ipairs(cfg.limits) do
      if limit.kind ~= 'X' then account.used[i] = rolls[limit.kind](limit, state.v, now) end
    end
  end
  return account
end

-- What the rules say together: the binding rule is the one that frees last; `never` outranks every instant.
local function new_judgement() return { allowed = true, rule = '', reason = '', retry = 0, shadow = {} } end

local function refuse(judgement, account, policy, rule, reason, retry, mode)
  local cfg = account.cfg
  if mode == 'Shadow' or cfg.mode == 'Shadow' then
    judgement.shadow[#judgement.shadow + 1] = rule
    account.shadowed = account.shadowed or {}
    account.shadowed[#account.shadowed + 1] = rule
    return
  end
  local later = retry == NEVER or (judgement.retry ~= NEVER and retry > judgement.retry)
  if judgement.allowed or later then
    judgement.allowed, judgement.rule, judgement.reason, judgement.retry = false, rule, reason, retry
    judgement.policy = policy
  end
end

-- After a loss of state, a window that was running then may have been used up.
local function judge_loss(judgement, account, policy, limit, now)
  local cfg, loss, ends = account.cfg, account.cfg.loss, nil
  if limit.kind == 'C' then
    if limit.window_start <= loss then ends = limit.window_end end
  elseif limit.kind == 'F' then
    ends = loss + limit.period
  elseif limit.kind == 'R' then
    ends = loss + limit.period + limit.step
  end
  if ends and ends > now then refuse(judgement, account, policy, limit.name, 'StateLost', ends, limit.mode) end
end

local function judge_limit(judgement, account, policy, limit, used, cost, now)
  if cost > limit.amount or (limit.burst and cost > limit.burst) then
    return refuse(judgement, account, policy, limit.name, 'CostAboveLimit', NEVER, limit.mode)
  end
  if used + cost > limit.amount then
    local retry = NEVER
    if limit.kind ~= 'X' then retry = frees[limit.kind](limit, account.state.v, used, cost) end
    refuse(judgement, account, policy, limit.name, 'LimitReached', retry, limit.mode)
  end
  if limit.burst then
    local ready = max(account.state.v[limit.burst_at], now * 1000) + (cost - limit.burst) * limit.interval
    if ready > now * 1000 then
      refuse(judgement, account, policy, limit.name, 'LimitReached', math.ceil(ready / 1000), limit.mode)
    end
  end
end

local function judge_subject(judgement, account, policy, now)
  local cfg = account.cfg
  if not account.state.fresh then return end
  -- A look must not write, so who has expired is only left out of the count here.
  local registered = call('ZSCORE', cfg.subjectsKey, account.state.key)
  if registered and tonumber(registered) > now then return end
  if call('ZCOUNT', cfg.subjectsKey, '(' .. now, '+inf') >= cfg.maxSubjects then
    local first = call('ZRANGE', cfg.subjectsKey, '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    refuse(judgement, account, policy, 'maxSubjects', 'TooManySubjects', tonumber(first[2]))
  end
end

local function judge(judgement, account, policy, cost, now)
  local cfg, state = account.cfg, account.state
  if cfg.mode == 'Off' then return end
  if now >= cfg.validUntil then
    return refuse(judgement, account, policy, 'config', 'ConfigExpired', NEVER)
  end
  for i, limit in ipairs(cfg.limits) do
    if cfg.loss_denies then judge_loss(judgement, account, policy, limit, now) end
    judge_limit(judgement, account, policy, limit, account.used[i], cost, now)
  end
  if cfg.spacing and state.v[cfg.spacing.at] > now then
    refuse(judgement, account, policy, 'spacing', 'Spacing', state.v[cfg.spacing.at], cfg.spacing.mode)
  end
  if cfg.breaker then
    local reason, retry = breaker_refuses(cfg.breaker, state, now)
    local mode = cfg.breaker.override == 'MetricsOnly' and 'Shadow' or 'Enforce'
    if reason then refuse(judgement, account, policy, 'circuitBreaker', reason, retry, mode) end
  end
  if cfg.active then
    local opening = next_opening(cfg.active, now)
    if opening ~= now then
      refuse(judgement, account, policy, 'activeHours', 'OutsideActiveHours', opening or NEVER, cfg.active.mode)
    end
  end
  if cfg.maxSubjects then judge_subject(judgement, account, policy, now) end
end

-- The instant from which a retry would pass may itself be outside the active hours: then it is the next opening.
local function join_retry(judgement, accounts)
  if judgement.allowed or judgement.retry == NEVER then return end
  local moved = true
  while moved and judgement.retry ~= NEVER do
    moved = false
    for _, account in ipairs(accounts) do
      local cfg = account.cfg
      local active = cfg.active
      if active and active.mode == 'Enforce' and cfg.mode == 'Enforce' and judgement.retry ~= NEVER then
        local opening = next_opening(active, judgement.retry) or NEVER
        if opening ~= judgement.retry then judgement.retry, moved = opening, true end
      end
    end
  end
end

-- A number in [0, 1) that two calls of one microsecond do not share in practice; Lua's own generator is seeded alike in
-- every run of a script.
local function draw(microseconds, key)
  local digest = redis.sha1hex(string.format('%.0f', microseconds) .. key)
  return tonumber(sub(digest, 1, 12), 16) / 281474976710656
end

local function charge_account(account, cost, now, microseconds)
  local cfg, state = account.cfg, account.state
  local v = state.v
  if cfg.mode == 'Off' then return '-' end
  for i, limit in ipairs(cfg.limits) do
    if limit.kind == 'X' then
      account.execution[limit.at] = min(account.execution[limit.at] + cost, 4294967295)
    else
      charge(limit, v, cost, now)
    end
    account.used[i] = account.used[i] + cost
  end
  local spacing = cfg.spacing
  if spacing then
    local gap = spacing.min
    if spacing.max > gap then gap = floor(gap + draw(microseconds, state.key) * (spacing.max - gap + 1)) end
    v[spacing.at] = now + gap
  end
  return cfg.breaker and breaker_admits(cfg.breaker, state, now) or '-'
end

local BUSY_SUBJECTS, BUSY_MEMORY = 8, 600000

-- Remember who is near a limit, so that status can name the subject: a few for each policy, none in the keyspace. One
-- that was not seen for ten minutes gives way first.
local function track(account, now)
  local s, cfg, key, ratio = account.cfg.statistics, account.cfg, account.state.key, 0
  for i, limit in ipairs(cfg.limits) do
    local r = account.used[i] / limit.amount
    if r > ratio then ratio = r end
  end
  local known = s.busy[key]
  if known then
    known.ratio, known.at = ratio, now
    return
  end
  if s.tracked >= BUSY_SUBJECTS then
    if ratio <= s.floor and now < s.floor_until then return end
    local lowest, lowest_key = huge, nil
    for other, each in pairs(s.busy) do
      local r = each.at + BUSY_MEMORY < now and -1 or each.ratio
      if r < lowest then lowest, lowest_key = r, other end
    end
    s.floor, s.floor_until = lowest, now + 60000
    if ratio <= lowest then return end
    s.busy[lowest_key], s.tracked = nil, s.tracked - 1
  end
  s.busy[key], s.tracked = { ratio = ratio, at = now }, s.tracked + 1
end

local function count_refusals(accounts, judgement)
  if not judgement.allowed then
    local denied = accounts[judgement.policy].cfg.statistics.denied
    denied[judgement.rule] = (denied[judgement.rule] or 0) + 1
  end
  if #judgement.shadow == 0 then return end
  for _, account in ipairs(accounts) do
    for _, rule in ipairs(account.shadowed or {}) do
      local shadow = account.cfg.statistics.shadow
      shadow[rule] = (shadow[rule] or 0) + 1
    end
  end
end

local function breaker_view(cfg, state)
  local b = cfg.breaker
  if not b then return 4 end
  if b.override == 'ForcedOpen' then return 3 end
  return state.v[b.at]
end

-- The verdict on the wire; docs/limits.md describes it.
local function verdict(accounts, judgement, now, permit, next_call)
  local reply = {
    judgement.allowed and 1 or 0, judgement.rule, judgement.reason, judgement.retry, now, permit, VERSION, 0,
    next_call, table.concat(judgement.shadow, ','), #accounts,
  }
  local n = 11
  for _, account in ipairs(accounts) do
    local cfg, v = account.cfg, account.state.v
    reply[n + 1], reply[n + 2], reply[n + 3] = cfg.hash, breaker_view(cfg, account.state), #cfg.limits
    n = n + 3
    for i, limit in ipairs(cfg.limits) do
      local used = account.used[i] or 0
      reply[n + 1], reply[n + 2] = limit.name, limit.amount
      reply[n + 3], reply[n + 4] = max(0, limit.amount - used), resets_at(limit, v, used)
      n = n + 4
    end
  end
  return reply
end

local function open_accounts(keys, args, execution, now, required)
  local accounts = {}
  for i = 1, #keys do
    local account, failure = open_account(keys[i], args[i], execution, now, required)
    if not account then return nil, failure end
    accounts[i] = account
  end
  return accounts
end

local function decide(accounts, cost, now)
  local judgement = new_judgement()
  for i = 1, #accounts do judge(judgement, accounts[i], i, cost, now) end
  join_retry(judgement, accounts)
  return judgement
end

local function whole_number(text, lowest)
  local number = tonumber(text)
  if number and number >= lowest and number <= 4294967295 and number == floor(number) then return number end
  return nil
end

-- KEYS: a state key for each policy. ARGV: a config key for each, then cost, execution, request, and for a reservation
-- its identity (16 characters) and its lease in milliseconds.
local function acquire(keys, args)
  local n = #keys
  local cost, execution, request = whole_number(args[n + 1], 1), args[n + 2] or '', args[n + 3] or ''
  local reservation, lease = args[n + 4] or '', whole_number(args[n + 5] or '0', 0)
  if not cost then return redis.error_reply('SKARGUMENT cost must be a whole number of at least 1') end
  if not lease or (reservation ~= '' and (#reservation ~= 16 or lease < 1)) then
    return redis.error_reply('SKARGUMENT a reservation needs an identity of 16 characters and a lease in milliseconds')
  end
  local microseconds = now_microseconds()
  local now = floor(microseconds / 1000)
  local request_key = request ~= '' and keys[1] .. '\31r' .. request
  if request_key then
    local first = call('GET', request_key)
    if first then
      local reply = cmsgpack.unpack(first)
      reply[8] = 1
      return reply
    end
  end
  local accounts, failure = open_accounts(keys, args, execution, now, true)
  if not accounts then return failure end
  local judgement = decide(accounts, cost, now)
  if judgement.allowed and reservation ~= '' and not reservable(accounts) then
    refuse(judgement, accounts[1], 1, 'reservations', 'TooManyReservations', NEVER)
  end
  count_refusals(accounts, judgement)
  if not judgement.allowed then return verdict(accounts, judgement, now, '', 0) end
  local permits, next_call = {}, 0
  for i, account in ipairs(accounts) do
    local cfg, state = account.cfg, account.state
    permits[i] = charge_account(account, cost, now, microseconds)
    if cfg.mode ~= 'Off' then
      if reservation ~= '' then reserve(state, reservation, cost, now, lease) end
      save_state(cfg, state, now)
      if account.execution then save_execution(cfg, state.key, execution, account.execution, now) end
      if cfg.spacing then next_call = max(next_call, state.v[cfg.spacing.at]) end
      track(account, now)
    end
  end
  local reply = verdict(accounts, judgement, now, table.concat(permits, ','), next_call)
  if request_key then call('SET', request_key, cmsgpack.pack(reply), 'PX', REQUEST_MEMORY) end
  return reply
end

-- The verdict that acquire would give, without charging. KEYS and ARGV as acquire, up to execution.
local function peek(keys, args)
  local n = #keys
  local cost = whole_number(args[n + 1], 0)
  if not cost then return redis.error_reply('SKARGUMENT cost must be a whole number') end
  local now = floor(now_microseconds() / 1000)
  local accounts, failure = open_accounts(keys, args, args[n + 2] or '', now, false)
  if not accounts then return failure end
  return verdict(accounts, decide(accounts, max(cost, 1), now), now, '', 0)
end
