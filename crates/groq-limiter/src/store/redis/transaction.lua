-- One lane's levels, shared by replicas: settle, observe, reserve in one step, by the server's clock.
--
-- KEYS[1] the lane (a hash), KEYS[2] what this replica had applied last, both with the lane's hash tag.
-- ARGV[1] the transaction as JSON, ARGV[2] the channel for news. Times and spans are microseconds; doubles hold them exactly.
-- Everything is read and computed before the first write, so a failure leaves nothing half done.
local request = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- What is taken or given back within this of a request's sending, Groq may or may not have seen before it.
local jitter = 300000
local function text(number) return string.format('%.0f', number) end
local function remember(list, word)
  local words = {}
  for each in string.gmatch(list, '%S+') do words[#words + 1] = each end
  words[#words + 1] = word
  return table.concat(words, ' ', math.max(1, #words - 15))
end

-- A transaction that its replica has given up, and that was held up on the way, must not be applied any more.
local fence, applied, held, lent = string.match(redis.call('GET', KEYS[2]) or '0 0 0 ', '^(%d+) (%d+) (%d) (.*)$')
if request.serial <= tonumber(fence) then return redis.error_reply('STALE a later transaction was applied') end

local head = redis.call('HMGET', KEYS[1], 'born', 'version', 'position', 'due')
local born, version, position = tonumber(head[1]), tonumber(head[2] or 0), tonumber(head[3] or 0)
-- When the last reservation goes, or went; and when by what is told now.
local due, moved = tonumber(head[4] or 0), now
if not born then born = now end
-- The hash is not the one this replica knows (expired, flushed, restarted empty): what it knows counts as well.
local stranger = request.born ~= born
if stranger then position = math.max(position, request.position) end

-- What others have given back for this replica while it was silent is its own again: it lives.
local returned = {}
for code, span in string.gmatch(stranger and '' or lent, '!(%S-):(%d+)') do returned[code] = tonumber(span) end

local levels, news, longest, wait = {}, stranger, 0, 0
for i, cell in ipairs(request.cells) do
  local kept = redis.call('HMGET', KEYS[1], 't:' .. cell.k, 'c:' .. cell.k, 'a:' .. cell.k, 'n:' .. cell.k, 'r:' .. cell.k, 'w:' .. cell.k, 'g:' .. cell.k, 'b:' .. cell.k, 'h:' .. cell.k, 'd:' .. cell.k)
  -- tat: when it is full again. corrections: sum of what headers taught. adjusted: of that and of settlements.
  -- recent: what was taken at once or given back lately; given: what headers gave back lately; both fading.
  -- gone: the last reservations given up before their time, as version:position:span.
  -- turns: reservations that were to wait and have not gone, or only lately, as position:due:span.
  -- reach: until when the level has room for the last reservation, less what was adjusted.
  local level = { tat = tonumber(kept[1] or 0), corrections = tonumber(kept[2] or 0), adjusted = tonumber(kept[3] or 0), newest = tonumber(kept[4] or 0) }
  local faded = math.exp(math.min(0, tonumber(kept[6] or 0) - now) / jitter)
  level.recent, level.given = tonumber(kept[5] or 0) * faded, tonumber(kept[7] or 0) * faded
  level.turns = kept[10] or ''
  if stranger then level.tat = math.max(level.tat, cell.t) end
  local again = returned[cell.k] or 0
  level.tat, level.adjusted, news = level.tat + again, level.adjusted + again, news or again > 0
  level.tat, level.gone, level.reach = level.tat + cell.b, kept[8] or '', tonumber(kept[9] or -2^52) + cell.b
  if cell.b < 0 then level.gone = remember(level.gone, text(version + 1) .. ':' .. text(request.gone) .. ':' .. text(-cell.b)) end
  -- Back from a time without the store, with what Groq's headers have shown meanwhile.
  if cell.j then
    local raised = math.max(level.tat, cell.t) - level.tat
    level.tat, level.adjusted, news = level.tat + raised, level.adjusted + raised, true
  end
  if cell.d > 0 then level.tat = math.max(level.tat, now) end
  -- Another replica's header may have shown what is told only now to have come back: not twice.
  local shown = math.floor(math.min(math.max(0, -cell.d), level.given))
  level.given = level.given - shown
  level.tat = level.tat + cell.d + shown
  level.adjusted = level.adjusted + cell.d + shown
  level.recent = level.recent + math.max(0, -cell.d)
  -- What is seen is measured by sums that a new record does not have.
  if cell.n and not stranger and cell.n > level.newest then
    level.tat = math.max(level.tat, cell.a)
    local wrong = cell.u - math.max(cell.m + level.corrections - cell.x, cell.a)
    -- Less in use than expected may be what Groq had not seen yet, or a refund that both have seen: the lane had not
    -- heard of what has come back here since it last heard of anything.
    local back = math.max(0, level.corrections - cell.x - level.adjusted + cell.v)
    if wrong < 0 then wrong = math.min(0, wrong + cell.o + back) end
    level.tat, level.corrections, level.adjusted = level.tat + wrong, level.corrections + wrong, level.adjusted + wrong
    level.given = level.given + math.max(0, -wrong)
    level.newest, news = cell.n, true
  end
  news = news or cell.d ~= 0 or cell.b ~= 0
  moved = math.max(moved, level.reach + level.adjusted - cell.cap)
  if cell.q > 0 then
    -- Whoever came before goes before, whatever it leaves untouched itself.
    level.room = math.max(math.max(level.tat, now) + cell.q + cell.r, level.reach + level.adjusted)
    wait = math.max(wait, level.room - cell.cap - now)
  end
  levels[i] = level
end

-- What is told moves the turns that are to come; one that is given up is none.
local by = due > now and moved - due or 0
for _, level in ipairs(levels) do
  local turns = {}
  for place, at, span in string.gmatch(level.turns, '(%d+):(%d+):(%d+)') do
    at = tonumber(at)
    if at > now then at = math.max(now, at + by) end
    if at + jitter > now and place ~= text(request.gone) then turns[#turns + 1] = place .. ':' .. text(at) .. ':' .. span end
  end
  level.turns = turns
end
due = due + by

-- All dimensions or none. Who must wait is charged now and told when to go, so that nobody passes it meanwhile.
local granted = request.patience and wait <= request.patience
if granted then
  position = position + 1
  due = math.max(due, now + wait)
  for i, cell in ipairs(request.cells) do
    if cell.q > 0 then
      levels[i].tat = math.max(levels[i].tat, now) + cell.q
      levels[i].taken = cell.q
      if wait > 0 then table.insert(levels[i].turns, text(position) .. ':' .. text(now + wait) .. ':' .. text(cell.q)) end
      if levels[i].room then levels[i].reach = levels[i].room - levels[i].adjusted end
    end
  end
end

version = version + 1
lent = {}
local fields = { 'born', text(born), 'version', text(version), 'position', text(position), 'due', text(due) }
local reply = { text(now), text(born), text(version), text(position), applied, held, granted and '1' or '0', text(wait) }
for i, cell in ipairs(request.cells) do
  local level = levels[i]
  local recent = level.recent + (wait == 0 and level.taken or 0)
  local turns = table.concat(level.turns, ' ', math.max(1, #level.turns - 31))
  for name, value in pairs({ t = level.tat, c = level.corrections, a = level.adjusted, n = level.newest, r = recent, g = level.given, h = level.reach, w = now }) do
    fields[#fields + 1] = name .. ':' .. cell.k
    fields[#fields + 1] = text(value)
  end
  for name, words in pairs({ b = level.gone, d = turns }) do
    fields[#fields + 1] = name .. ':' .. cell.k
    fields[#fields + 1] = words
  end
  for _, value in ipairs({ cell.k, text(level.tat), text(level.corrections), text(level.adjusted), text(level.newest), text(level.recent), text(granted and level.room or 0), level.gone, turns }) do
    reply[#reply + 1] = value
  end
  longest = math.max(longest, level.tat - now)
  -- What comes back should this replica fall silent.
  local span = cell.l + (level.taken or 0)
  if span > 0 then lent[#lent + 1] = cell.k .. ':' .. text(span) .. ':' .. text(level.corrections) end
end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('PEXPIRE', KEYS[1], text(longest / 1000 + 600000))
if not request.hello then applied, held = text(request.serial), granted and '1' or '0' end
redis.call('SET', KEYS[2], text(request.serial) .. ' ' .. applied .. ' ' .. held .. ' ' .. table.concat(lent, ' '), 'PX', '3600000')
if news then redis.call('PUBLISH', ARGV[2], KEYS[1] .. ' ' .. cjson.encode(reply)) end
return reply
