-- One decision: every rule of every policy named is judged at one instant, then all are charged or none.

local NEVER = -1
local REQUEST_MEMORY = 3600000 -- a repeated request gets its first verdict for an hour

-- The accounts of a call, kept for the next one: making tables anew costs more than the decision.
local pool = {}

local function pooled_account(i)
  local account = pool[i]
  if not account then
    account = { state = {}, used = {} }
    pool[i] = account
  end
  account.execution, account.shadowed = nil, nil
  return account
end

-- Bring the counters of an account to `now`.
local function roll(account, now)
  local cfg, v, used = account.cfg, account.state.v, account.used
  local limits = cfg.limits
  for i = 1, cfg.count do
    local limit = limits[i]
    local kind = limit.kind
    if kind == 'C' then -- by far the usual one
      if not limit.window_start or now < limit.window_start or now >= limit.window_end then locate(limit, now) end
      local at = limit.at
      if v[at] ~= limit.window_start then rolls.C(limit, v, now) end
      used[i] = v[at + 1]
    elseif kind == 'X' then
      used[i] = account.execution and account.execution[limit.at] or 0
    else
      used[i] = rolls[kind](limit, v, now)
    end
  end
end

-- A policy and a subject, brought to `now`, ready to be judged.
-- A charge must name its execution where a limit counts by it; a look (`required` false) may leave that limit out.
local function open_account(account, state_key, config_key, execution, now, required)
  local cfg, failure = load_config(config_key)
  if not cfg then return failure end
  local state = load_state(cfg, state_key, account.state)
  account.cfg = cfg
  if cfg.executions > 0 and cfg.mode ~= 'Off' then
    if execution ~= '' then
      account.execution = load_execution(cfg, state_key, execution)
    elseif required then
      return redis.error_reply('SKEXECUTION the policy in ' .. config_key .. ' needs the name of the execution')
    end
  end
  if now >= cfg.validUntil then return nil end
  roll(account, now)
  if #state.reservations > 0 then
    expire_reservations(cfg, state, now)
    roll(account, now)
  end
  return nil
end

-- What the rules say together: the binding rule is the one that frees last; `never` outranks every instant.
local judgement_of_call = {}

local function new_judgement()
  local judgement = judgement_of_call
  judgement.allowed, judgement.rule, judgement.reason, judgement.retry = true, '', '', 0
  judgement.shadow, judgement.policy = nil, nil
  return judgement
end

local function refuse(judgement, account, policy, rule, reason, retry, mode)
  local cfg = account.cfg
  if mode == 'Shadow' or cfg.mode == 'Shadow' then
    judgement.shadow = judgement.shadow or {}
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
  local limits, used = cfg.limits, account.used
  for i = 1, cfg.count do
    local limit = limits[i]
    if cfg.loss_denies then judge_loss(judgement, account, policy, limit, now) end
    if used[i] + cost > limit.amount or limit.burst then
      judge_limit(judgement, account, policy, limit, used[i], cost, now)
    end
  end
  if cfg.spacing and state.v[cfg.spacing.at] > now then
    refuse(judgement, account, policy, 'spacing', 'Spacing', state.v[cfg.spacing.at], cfg.spacing.mode)
  end
  if cfg.breaker then
    local reason, retry = breaker_refuses(cfg.breaker, state.circuit, now)
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

-- A number in [0, 1). Lua's own generator is seeded alike in every run of a script; the clock's microseconds, stirred,
-- are as good as chance for a pause. (Steps of a generator modulo 2^31 - 1, small enough for exact doubles.)
local stirred = 1

local function draw(microseconds)
  stirred = (stirred * 16807 + microseconds % 2147483647) % 2147483647
  stirred = (stirred * 16807) % 2147483647
  return stirred / 2147483647
end

local function charge_account(account, cost, now, microseconds)
  local cfg, state = account.cfg, account.state
  local v = state.v
  if cfg.mode == 'Off' then return '-' end
  local limits, used = cfg.limits, account.used
  for i = 1, cfg.count do
    local limit = limits[i]
    if limit.kind == 'X' then
      account.execution[limit.at] = min(account.execution[limit.at] + cost, 4294967295)
    else
      charge(limit, v, cost, now)
    end
    used[i] = used[i] + cost
  end
  local spacing = cfg.spacing
  if spacing then
    local gap = spacing.min
    if spacing.max > gap then gap = floor(gap + draw(microseconds) * (spacing.max - gap + 1)) end
    v[spacing.at] = now + gap
  end
  return cfg.breaker and breaker_admits(cfg.breaker, state.circuit, now) or '-'
end

local BUSY_SUBJECTS, BUSY_MEMORY = 8, 600000

-- Remember who is near a limit, so that status can name the subject: a few for each policy, none in the keyspace. One
-- that was not seen for ten minutes gives way first.
local function track(account, now)
  local s, cfg, key, ratio = account.cfg.statistics, account.cfg, account.state.key, 0
  local known = s.busy[key]
  if known and now - known.at < 1000 then return end
  -- Among many subjects one call in eight is enough to notice a busy one.
  if not known and s.tracked >= BUSY_SUBJECTS and now % 8 ~= 0 and now < s.floor_until then return end
  local limits, used = cfg.limits, account.used
  for i = 1, cfg.count do
    local r = used[i] / limits[i].amount
    if r > ratio then ratio = r end
  end
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
  if not judgement.shadow then return end
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
  return state.circuit and state.circuit.state or 0
end

-- The verdict on the wire; docs/limits.md describes it. A policy's own reply is kept with what never changes in it.
local HEAD = 11

local function fill_policy(reply, n, account)
  local cfg, state, used = account.cfg, account.state, account.used
  local limits, v = cfg.limits, state.v
  reply[n + 1], reply[n + 2], reply[n + 3] = cfg.hash, breaker_view(cfg, state), cfg.count
  n = n + 3
  for i = 1, cfg.count do
    local limit, spent = limits[i], used[i] or 0
    reply[n + 1], reply[n + 2] = limit.name, limit.amount
    local left = limit.amount - spent
    reply[n + 3] = left > 0 and left or 0
    reply[n + 4] = limit.kind == 'C' and limit.window_end or resets_at(limit, v, spent)
    n = n + 4
  end
  return n
end

local function verdict(accounts, judgement, now, permit, next_call)
  local reply = {}
  if #accounts == 1 then
    reply = accounts[1].cfg.reply or reply
    accounts[1].cfg.reply = reply
  end
  reply[1], reply[2], reply[3] = judgement.allowed and 1 or 0, judgement.rule, judgement.reason
  reply[4], reply[5], reply[6], reply[7], reply[8] = judgement.retry, now, permit, VERSION, 0
  reply[9], reply[10] = next_call, judgement.shadow and table.concat(judgement.shadow, ',') or ''
  reply[11] = #accounts
  local n = HEAD
  for i = 1, #accounts do n = fill_policy(reply, n, accounts[i]) end
  return reply
end

local function open_accounts(keys, args, execution, now, required)
  local accounts = {}
  for i = 1, #keys do
    local account = pooled_account(i)
    local failure = open_account(account, keys[i], args[i], execution, now, required)
    if failure then return nil, failure end
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
  local cost, execution, request = args[n + 1], args[n + 2] or '', args[n + 3] or ''
  local reservation, lease = args[n + 4] or '', 0
  cost = cost == '1' and 1 or whole_number(cost, 1)
  if not cost then return redis.error_reply('SKARGUMENT cost must be a whole number of at least 1') end
  if reservation ~= '' then lease = whole_number(args[n + 5], 1) end
  if not lease or (reservation ~= '' and #reservation ~= 16) then
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
  local permit, next_call = nil, 0
  for _, account in ipairs(accounts) do
    local cfg, state = account.cfg, account.state
    local permit_here = charge_account(account, cost, now, microseconds)
    permit = permit and permit .. ',' .. permit_here or permit_here
    if cfg.mode ~= 'Off' then
      if reservation ~= '' then reserve(state, reservation, cost, now, lease) end
      save_state(cfg, state, now)
      if account.execution then save_execution(cfg, state.key, execution, account.execution, now) end
      if cfg.spacing then next_call = max(next_call, state.v[cfg.spacing.at]) end
      track(account, now)
    end
  end
  local reply = verdict(accounts, judgement, now, permit, next_call)
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
