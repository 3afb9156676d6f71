-- Rules: what each says about a call, and the part of a policy that is made into Lua code of its own. A decision touches
-- every limit five times; code without loops and with numbers in place takes half of what walking tables would.

local NEVER = -1

-- What the rules say together: the binding rule is the one that frees last; `never` outranks every instant.
local judgement_of_call = {}

local function new_judgement()
  local judgement = judgement_of_call
  judgement.allowed, judgement.rule, judgement.reason, judgement.retry = true, '', '', 0
  judgement.shadow, judgement.policy = false, 0
  return judgement
end

local function refuse(judgement, account, policy, rule, reason, retry, mode)
  if mode == 'Shadow' or account.cfg.mode == 'Shadow' then
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
local function judge_loss(judgement, account, policy, now)
  local cfg = account.cfg
  for _, limit in ipairs(cfg.limits) do
    local ends = nil
    if limit.kind == 'C' then
      if limit.window_start <= cfg.loss then ends = limit.window_end end
    elseif limit.kind == 'F' then
      ends = cfg.loss + limit.period
    elseif limit.kind == 'R' then
      ends = cfg.loss + limit.period + limit.step
    end
    if ends and ends > now then refuse(judgement, account, policy, limit.name, 'StateLost', ends, limit.mode) end
  end
end

-- A limit that may refuse: whether it does, and from when it would not.
local function judge_limit(judgement, account, policy, limit, used, cost, now)
  if cost > limit.amount or (limit.burst and cost > limit.burst) then
    return refuse(judgement, account, policy, limit.name, 'CostAboveLimit', NEVER, limit.mode)
  end
  if used + cost > limit.amount then
    local retry = NEVER
    if limit.kind ~= 'X' then retry = frees[limit.kind](limit, account.v, used, cost) end
    refuse(judgement, account, policy, limit.name, 'LimitReached', retry, limit.mode)
  end
  if limit.burst then
    local ready = max(account.v[limit.burst_at], now * 1000) + (cost - limit.burst) * limit.interval
    if ready > now * 1000 then
      refuse(judgement, account, policy, limit.name, 'LimitReached', math.ceil(ready / 1000), limit.mode)
    end
  end
end

local function judge_subject(judgement, account, policy, now)
  local cfg = account.cfg
  if not account.fresh then return end
  -- A look must not write, so who has expired is only left out of the count here.
  local registered = call('ZSCORE', cfg.subjectsKey, account.key)
  if registered and tonumber(registered) > now then return end
  if call('ZCOUNT', cfg.subjectsKey, '(' .. now, '+inf') >= cfg.maxSubjects then
    local first = call('ZRANGE', cfg.subjectsKey, '(' .. now, '+inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')
    refuse(judgement, account, policy, 'maxSubjects', 'TooManySubjects', tonumber(first[2]))
  end
end

local function judge(judgement, account, policy, cost, now)
  local cfg = account.cfg
  if cfg.mode == 'Off' then return end
  if now >= cfg.validUntil then
    return refuse(judgement, account, policy, 'config', 'ConfigExpired', NEVER)
  end
  if cfg.loss_denies then judge_loss(judgement, account, policy, now) end
  cfg.judge_limits(judgement, account, policy, account.v, account.used, cost, now)
  local spacing, active = cfg.spacing, cfg.active
  if spacing and account.v[spacing.at] > now then
    refuse(judgement, account, policy, 'spacing', 'Spacing', account.v[spacing.at], spacing.mode)
  end
  if cfg.breaker and (account.circuit or cfg.breaker.override == 'ForcedOpen') then
    local reason, retry = breaker_refuses(cfg.breaker, account.circuit, now)
    local mode = cfg.breaker.override == 'MetricsOnly' and 'Shadow' or 'Enforce'
    if reason then refuse(judgement, account, policy, 'circuitBreaker', reason, retry, mode) end
  end
  if active and not (active.open_from and now >= active.open_from and now < active.open_until) then
    local opening = next_opening(active, now)
    if opening ~= now then
      refuse(judgement, account, policy, 'activeHours', 'OutsideActiveHours', opening or NEVER, active.mode)
    end
  end
  if cfg.maxSubjects then judge_subject(judgement, account, policy, now) end
end

-- The instant from which a retry would pass may itself be outside the active hours: then it is the next opening.
local function open_retry(cfg, retry)
  local active = cfg.active
  if retry == NEVER or not active or active.mode ~= 'Enforce' or cfg.mode ~= 'Enforce' then return retry end
  return next_opening(active, retry) or NEVER
end

local function count_denial(cfg, rule)
  local denied = cfg.statistics.denied
  denied[rule] = (denied[rule] or 0) + 1
end

-- Who is near a limit, so that status can name the subject: a few for each policy, none in the keyspace. One that was not
-- seen for ten minutes gives way first.
local BUSY_SUBJECTS, BUSY_MEMORY = 8, 600000

-- Whether the use of a subject is worth a look now. Among many, one call in eight is enough to notice a busy one.
local function wants_use(s, key, now)
  local known = s.busy[key]
  if known then return now - known.at >= 1000 end
  return s.tracked < BUSY_SUBJECTS or now % 8 == 0 or now >= s.floor_until
end

local function note_use(s, key, ratio, now)
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

-- A number in [0, 1). Lua's own generator is seeded alike in every run of a script; the clock's microseconds, stirred,
-- are as good as chance for a pause. (Steps of a generator modulo 2^31 - 1, small enough for exact doubles.)
local stirred = 1

local function draw(microseconds)
  stirred = (stirred * 16807 + microseconds % 2147483647) % 2147483647
  stirred = (stirred * 16807) % 2147483647
  return stirred / 2147483647
end

-- The pause after a call, in milliseconds.
local function draw_gap(spacing, microseconds)
  if spacing.max <= spacing.min then return spacing.min end
  return floor(spacing.min + draw(microseconds) * (spacing.max - spacing.min + 1))
end

-- The verdict on the wire, a JSON text: docs/limits.md. Most of it stays the same from call to call.
local BREAKERS = { [0] = 'Closed', 'Open', 'HalfOpen', 'ForcedOpen', 'Disabled' }
local ALLOWED = '{"allowed":true,"rule":"","reason":"","refusedBy":0,"retryAt":0,"now":'
local NOTHING_SHADOWED = ',"shadow":[],"replayed":false,"library":"' .. VERSION .. '","policies":['

-- Instants as they stand in a verdict; many calls of a millisecond have the same now, and many denied ones the same retry.
local now_printed, now_text = 0, '0'
local retry_printed, retry_text = 0, '0'

local function print_now(now)
  if now ~= now_printed then now_printed, now_text = now, format('%d', now) end
  return now_text
end

local function head_of_denial(rule, reason, policy, retry)
  if retry ~= retry_printed then retry_printed, retry_text = retry, format('%d', retry) end
  return '{"allowed":false,"rule":"' .. rule .. '","reason":"' .. reason .. '","refusedBy":' .. policy
    .. ',"retryAt":' .. retry_text .. ',"now":'
end

-- Numbers as they stand in a verdict; the same ones come again and again, and printing one takes longer than finding it.
-- Only so many are kept, as each makes Lua's collection of garbage longer, which Redis calls for all the time.
local TEXTS = 256
local texts, texts_kept = {}, 0

local function text_of(number)
  local text = format('%d', max(number, 0)) -- a rule in Shadow mode may have let more through
  if texts_kept >= TEXTS then
    for kept in pairs(texts) do texts[kept] = nil end
    texts_kept = 0
  end
  texts[number], texts_kept = text, texts_kept + 1
  return text
end

-- What stands in a verdict before each limit's remaining units, and after the last one's.
local function texts_of_limits(cfg)
  local function before(limit) return format('{"name":"%s","amount":%d,"remaining":', limit.name, limit.amount) end
  for i, limit in ipairs(cfg.limits) do
    local following = cfg.limits[i + 1]
    limit.after = following and '},' .. before(following) or '}]}'
  end
  local first = cfg.limits[1]
  cfg.policy_text = format('{"hash":"%s","breaker":"', cfg.hash)
  cfg.limits_text = first and '","limits":[' .. before(first) or '","limits":[]}'
end

-- Code for one limit, where `value(i)` is the code for the i-th value of a state: expressions for what is used, for its
-- part of a verdict, and statements that judge and charge.
local function code_of(cfg, limit, i, value)
  local name, amount, at = 'L' .. i, format('%d', limit.amount), limit.at
  local code, used = {}, format('used[%d]', i)
  if limit.kind == 'C' then
    used = value(at)
    local never_above = limit.mode == 'Enforce' and cfg.mode ~= 'Shadow'
    code.charge = format(never_above and '%s = %s + cost' or '%s = min(%s + cost, UNITS)', used, used)
  elseif limit.kind == 'X' then
    used = format('(execution and execution[%d] or 0)', at)
    code.charge = format('execution[%d] = min(execution[%d] + cost, UNITS)', at, at)
  else
    code.charge = format('charge_span(%s, v, cost, now); used[%d] = used[%d] + cost', name, i, i)
  end
  code.exceeds = format('%s + cost > %s', used, amount)
  local judge_it = format('judge_limit(judgement, account, policy, %s, %s, cost, now)', name, used)
  code.judge = limit.burst and judge_it or format('if %s then %s end', code.exceeds, judge_it)
  -- As calendar_count: a window that began before this one is over; one that begins later is left to the general code.
  code.start = format('s%d', i)
  code.roll = format(
    'if s%d < %s.window_start then %s = 0 elseif s%d > %s.window_start then return nil end', i, name, used, i, name
  )
  -- Of several calendar limits the one that frees last is binding.
  code.bind = format(
    "if %s then frees = %s.window_end; if frees > retry then rule, retry = '%s', frees end end",
    code.exceeds, name, limit.name
  )
  code.ratio = format('%s / %s', used, amount)
  local left, tail = format('%s - %s', amount, used), name .. '.tail'
  if limit.kind ~= 'C' then
    tail = format("format(',\"resetsAt\":%%d%%s', resets_at(%s, v, %s), %s.after)", name, used, name)
  end
  code.describe = format('(texts[%s] or text_of(%s)) .. %s', left, left, tail)
  return code
end

-- Code that reads and writes the values of a state, some records in a step: Lua bounds how many values a step may have.
local VALUES = 90

local function code_of_values(cfg, value)
  local reads, writes, fields, places, at = {}, {}, {}, {}, cfg.head_size + 1
  local function step()
    local formats, targets = concat(fields), concat(places, ', ')
    reads[#reads + 1] = format("%s = unpack_values('<%s', stored, %d)", targets, formats, at)
    local head, of_head = '', ''
    if #writes == 0 then head, of_head = format('c%d', cfg.head_size), 'head, ' end
    writes[#writes + 1] = format("pack('<%s%s', %s%s)", head, formats, of_head, targets)
    at, fields, places = at + struct.size('<' .. formats), {}, {}
  end
  for _, record in ipairs(cfg.records) do
    fields[#fields + 1] = FIELDS[record.kind]
    for i = 0, WIDTH[record.kind] - 1 do places[#places + 1] = value(record.place + i) end
    if #places > VALUES then step() end
  end
  if #places > 0 then step() end
  return concat(reads, '\n  '), concat(writes, ' .. ')
end

local function each_limit(cfg, value)
  local parts = {
    names = {}, judge = {}, bind = {}, charge = {}, describe = {}, ratio = {}, exceeds = {}, start = {}, roll = {},
  }
  for i, limit in ipairs(cfg.limits) do
    parts.names[i] = format('local L%d = limits[%d]', i, i)
    for part, code in pairs(code_of(cfg, limit, i, value)) do parts[part][i] = code end
  end
  return parts
end

local PARAMETERS = [[
local cfg, limits, texts, text_of, min, max, format, pack, unpack_values, UNITS, judge_limit, charge_span, resets_at,
  draw_gap, store, wants_use, note_use, open_retry, count_denial, head_of_denial = ...
]]

local GENERAL = PARAMETERS .. [[
@names
local function read_values(v, stored)
  @read
end
local function write(head, v)
  return @write
end
local function judge_limits(judgement, account, policy, v, used, cost, now)
  local execution = account.execution
  @judge
end
local function charge_limits(v, used, execution, cost, now)
  @charge
end
local function describe(text, breaker, v, used, execution, ending)
  return text .. '@policy' .. breaker .. '@before_limits' .. @describe .. ending
end
local function highest_ratio(v, used, execution)
  return max(@ratio)
end
return read_values, write, judge_limits, charge_limits, describe, highest_ratio
]]

local function compiled(template, parts, cfg)
  local text = template:gsub('@([%l_]+)', parts)
  return assert(loadstring(text, '=policy'))(
    cfg, cfg.limits, texts, text_of, min, max, format, struct.pack, struct.unpack, UNITS, judge_limit, charge_span,
    resets_at, draw_gap, store, wants_use, note_use, open_retry, count_denial, head_of_denial
  )
end

local function compile_general(cfg)
  local function value(i) return format('v[%d]', i) end
  local code, parts = each_limit(cfg, value), {}
  parts.read, parts.write = code_of_values(cfg, value)
  for _, part in ipairs({ 'names', 'judge', 'charge' }) do parts[part] = concat(code[part], '\n  ') end
  parts.describe, parts.ratio = concat(code.describe, ' .. '), concat(code.ratio, ', ')
  parts.policy, parts.before_limits = cfg.policy_text, cfg.limits_text
  if cfg.count == 0 then parts.describe, parts.ratio = "''", '0' end
  cfg.read_values, cfg.write, cfg.judge_limits, cfg.charge_limits, cfg.describe, cfg.highest_ratio =
    compiled(GENERAL, parts, cfg)
end

-- The usual call in one piece: a policy of calendar limits, one unit of a subject that is known, with a circuit that is
-- closed. Whatever is not so leaves it to the general code: it returns nil and has changed nothing. It is made of the same
-- lines, with locals in place of tables.
local USUAL = PARAMETERS .. [[
@names
local function decide(key, stored, is_current, now, now_text, microseconds)
  local head, cost = cfg.head, 1
  local @read
  if not is_current then
    local @starts = unpack_values(cfg.starts_format, stored, cfg.ids_size + 1)
    @roll
  end
  if @lengths > 0 @unregistered then return nil end
  if @exceeds then
    local rule, reason, retry, frees = '', 'LimitReached', 0, nil
    @bind
    @bind_spacing
    count_denial(cfg, rule)
    return head_of_denial(rule, reason, 1, open_retry(cfg, retry)) .. now_text .. '@after_now' .. @describe .. ']}'
  end
  local next_call_text = '0'
  @spacing
  @charge
  store(key, @write, cfg.calendar_text)
  if wants_use(cfg.statistics, key, now) then note_use(cfg.statistics, key, max(@ratio), now) end
  return '@before_now' .. now_text .. '@before_next' .. next_call_text .. '@before_limits' .. @describe .. ']}'
end
return decide
]]

local function compile_usual(cfg)
  if cfg.mode ~= 'Enforce' or cfg.loss_denies or cfg.has_spans or cfg.executions > 0 or cfg.count == 0 then return end
  if cfg.breaker and cfg.breaker.override == 'ForcedOpen' then return end
  if cfg.spacing and cfg.spacing.mode ~= 'Enforce' then return end
  local function value(i) return 'u' .. format('%d', i) end
  local code, parts = each_limit(cfg, value), {}
  for _, limit in ipairs(cfg.limits) do
    if limit.mode ~= 'Enforce' then return end
  end
  parts.read, parts.write = code_of_values(cfg, value)
  for _, part in ipairs({ 'names', 'bind', 'charge', 'roll' }) do parts[part] = concat(code[part], '\n  ') end
  parts.describe, parts.exceeds = concat(code.describe, ' .. '), concat(code.exceeds, ' or ')
  parts.starts, parts.ratio = concat(code.start, ', '), concat(code.ratio, ', ')
  parts.lengths = value(cfg.lengths_at) .. ' + ' .. value(cfg.lengths_at + 1)
  parts.unregistered, parts.spacing, parts.bind_spacing = '', '', ''
  if cfg.subjects_at then parts.unregistered = format('or %s < cfg.calendar_end', value(cfg.subjects_at)) end
  if cfg.spacing then
    local at = value(cfg.spacing.at)
    parts.exceeds = format('%s or %s > now', parts.exceeds, at)
    parts.bind_spacing = format("if %s > max(now, retry) then rule, reason, retry = 'spacing', 'Spacing', %s end", at, at)
    parts.spacing = format([[
  local next_call = now + draw_gap(cfg.spacing, microseconds)
  if next_call > cfg.calendar_end then return nil end
  %s, next_call_text = next_call, next_call == now and now_text or format('%%d', next_call)]], at)
  end
  parts.before_now = ALLOWED
  parts.before_next = ',"permit":"' .. (cfg.breaker and '0' or '-') .. '","nextCallAt":'
  parts.after_now = ',"permit":"","nextCallAt":0' .. NOTHING_SHADOWED .. cfg.policy_text
    .. BREAKERS[cfg.breaker and 0 or 4] .. cfg.limits_text
  parts.before_limits = NOTHING_SHADOWED .. cfg.policy_text .. BREAKERS[cfg.breaker and 0 or 4] .. cfg.limits_text
  cfg.decide = compiled(USUAL, parts, cfg)
end

-- Make the code of a policy.
function specialize(cfg)
  cfg.windows_from, cfg.windows_until = 0, 0 -- of no instant yet
  texts_of_limits(cfg)
  compile_general(cfg)
  compile_usual(cfg)
end
