-- Windows: which one an instant is in, whether a cost fits, and from when it would.
-- A table of runs is flat: first, step, count, first, step, count, ...: `count` windows of `step` from `first` on.

-- Find the run that holds an instant; the caller knows that the table covers it.
local function run_at(runs, width, now)
  local low, high = 0, #runs / width - 1
  while low < high do
    local middle = floor((low + high + 1) / 2)
    if runs[middle * width + 1] <= now then low = middle else high = middle - 1 end
  end
  return low * width
end

-- Set limit.window_start and limit.window_end to the calendar window of `now`; kept until an instant outside is asked.
local function locate(limit, now)
  if limit.window_start and now >= limit.window_start and now < limit.window_end then return end
  local runs = limit.runs
  local i = run_at(runs, 3, now)
  local first, step = runs[i + 1], runs[i + 2]
  local k = min(floor((now - first) / step), runs[i + 3] - 1)
  limit.window_start = first + k * step
  limit.window_end = limit.window_start + step
end

-- Active hours: the first instant at or after `now` that is inside; nil when the table has none.
-- Runs have a fourth number: the length of each interval.
local function next_opening(active, now)
  if active.open_from and now >= active.open_from and now < active.open_until then return now end
  local runs = active.runs
  if #runs == 0 then return nil end
  if now < runs[1] then return runs[1] end
  local i = run_at(runs, 4, now)
  local first, step, count, length = runs[i + 1], runs[i + 2], runs[i + 3], runs[i + 4]
  local k = min(floor((now - first) / step), count - 1)
  local open = first + k * step
  if now < open + length then
    active.open_from, active.open_until = open, open + length
    return now
  end
  if k + 1 < count then return open + step end
  return runs[i + 5]
end

-- Bring the policy to the calendar windows of `now`: what is the same for every call within all of them is made once.
local function enter_windows(cfg, now)
  local from, first_end, last_end, starts = 0, huge, 0, {}
  for i, limit in ipairs(cfg.calendars) do
    locate(limit, now)
    starts[i] = limit.window_start
    from, first_end, last_end = max(from, limit.window_start), min(first_end, limit.window_end), max(last_end, limit.window_end)
    limit.tail = format(',"resetsAt":%d%s', limit.window_end, limit.after)
  end
  cfg.windows_from, cfg.windows_until = from, first_end
  cfg.calendar_end, cfg.calendar_text = last_end, format('%d', last_end)
  cfg.head = cfg.ids .. struct.pack(cfg.starts_format, unpack(starts))
end

local rolls = {} -- kind -> function that brings a record to `now` and returns what is used

function rolls.F(limit, v, now)
  local at = limit.at
  -- While nothing is counted no window runs, even if a state was written.
  if now >= v[at] + limit.period or v[at + 1] == 0 then v[at], v[at + 1] = now, 0 end
  return v[at + 1]
end

function rolls.R(limit, v, now)
  local at = limit.at
  local step = floor(now / limit.step)
  local moved = step - v[at]
  if moved < 0 then step, moved = v[at], 0 end -- the clock went back: nothing is given back for it
  if moved > 0 then
    for i = ROLLING_STEPS, 0, -1 do
      local source = i - moved
      v[at + 1 + i] = source >= 0 and v[at + 1 + source] or 0
    end
    v[at] = step
  end
  local used = 0
  for i = 1, ROLLING_STEPS + 1 do used = used + v[at + i] end
  return used
end

-- From when a cost fits, all else unchanged.
local frees = {}

function frees.C(limit) return limit.window_end end

function frees.F(limit, v) return v[limit.at] + limit.period end

function frees.R(limit, v, used, cost)
  local at, excess = limit.at, used + cost - limit.amount
  for i = ROLLING_STEPS, 0, -1 do
    excess = excess - v[at + 1 + i]
    if excess <= 0 then return (v[at] - i + ROLLING_STEPS + 1) * limit.step end
  end
  return (v[at] + ROLLING_STEPS + 1) * limit.step
end

-- When all units are back; 0 when none is used or when time does not bring them back.
local function resets_at(limit, v, used)
  if used == 0 or limit.kind == 'X' then return 0 end
  if limit.kind == 'F' then return v[limit.at] + limit.period end
  for i = 0, ROLLING_STEPS do
    if v[limit.at + 1 + i] > 0 then return (v[limit.at] - i + ROLLING_STEPS + 1) * limit.step end
  end
  return 0
end

local UNITS = 4294967295 -- a rule in Shadow mode counts on above its amount, but no further than its field

-- Charge a limit whose windows are not those of the calendar.
local function charge_span(limit, v, cost, now)
  local at = limit.at
  v[at + 1] = min(v[at + 1] + cost, UNITS)
  if limit.burst then
    local full = now * 1000 + limit.burst * limit.interval -- a rule in Shadow mode goes no further
    v[limit.burst_at] = min(max(v[limit.burst_at], now * 1000) + cost * limit.interval, full)
  end
end

-- Give back what was charged at an instant, where that instant's window is still the current one.
local function refund(limit, v, cost, charged_at, now, later_start)
  local at = limit.at
  if limit.kind == 'C' then
    if (later_start or limit.window_start) <= charged_at then v[at] = max(0, v[at] - cost) end
  elseif limit.kind == 'R' then
    local i = v[at] - floor(charged_at / limit.step)
    if i >= 0 and i <= ROLLING_STEPS then v[at + 1 + i] = max(0, v[at + 1 + i] - cost) end
    if limit.burst then -- what time has given back since then is back already
      v[limit.burst_at] = max(0, v[limit.burst_at] - max(0, cost * limit.interval - (now - charged_at) * 1000))
    end
  elseif v[at] <= charged_at then
    v[at + 1] = max(0, v[at + 1] - cost)
  end
end
