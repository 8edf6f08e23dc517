-- One limiter's quotas, shared by replicas: settle, observe and reserve in one step, by the server's clock.
--
-- KEYS[1] the record (a hash), KEYS[2] what this replica has outstanding there, both with the record's hash tag.
-- ARGV[1] the transaction as JSON, ARGV[2] the channel for updates. Times and spans are microseconds; doubles hold them exactly.
-- Everything is read and computed before the first write, so a failure leaves nothing half done.
local request = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
-- A replica that does not ask for so long while it is the first of those that wait makes way.
local lapse = 1000000
local replica = string.match(KEYS[2], '[^:]*$')
local function text(number) return string.format('%.0f', number) end

local head = redis.call('HMGET', KEYS[1], 'epoch', 'version', 'position', 'waiting', 'learnt')
local epoch, version, position = tonumber(head[1] or now), tonumber(head[2] or 0), tonumber(head[3] or 0)
-- The replica does not know this record, or comes back from a time without it: what it knows counts as well.
local unknown = request.epoch ~= epoch
if unknown then position = math.max(position, request.position) end

-- The replicas whose heads wait, in the order in which they began to, each with what its last head took, in millionths of the
-- limit, and the time of its last call as the first one.
local waiting = {}
for name, share, at in string.gmatch(head[4] or '', '(%S+):(%d+):(%d+)') do
  waiting[#waiting + 1] = { name = name, share = tonumber(share), at = tonumber(at) }
end
local before = waiting[1] and waiting[1].name
while waiting[1] and waiting[1].name ~= replica and waiting[1].at + lapse < now do
  table.remove(waiting, 1)
  if waiting[1] then waiting[1].at = now end
end
-- What this one stands behind.
local place, ahead, share = nil, 0, 0
for at, other in ipairs(waiting) do
  if other.name == replica then place = at break end
  ahead = ahead + other.share
end

local quotas, wait, update = {}, 0, unknown
for i, cell in ipairs(request.cells) do
  local kept = redis.call('HMGET', KEYS[1], 't:' .. cell.code, 'c:' .. cell.code, 'n:' .. cell.code)
  -- tat: when it is full again. corrections: sum of what headers taught. newest: the position of the last header.
  local quota = { tat = tonumber(kept[1] or 0), corrections = tonumber(kept[2] or 0), newest = tonumber(kept[3] or 0) }
  if unknown and cell.known > quota.tat then
    if kept[1] then quota.corrections = quota.corrections + math.max(0, cell.known - math.max(quota.tat, now)) end
    quota.tat = cell.known
  end
  if cell.settled > 0 then quota.tat = math.max(quota.tat, now) end
  quota.tat = quota.tat + cell.settled
  -- What is seen is measured by sums that a new record does not have.
  local seen = cell.observed
  if seen and not unknown and seen.position > quota.newest then
    quota.tat = math.max(quota.tat, seen.at)
    local error = seen.truth - math.max(seen.tat + quota.corrections - seen.corrections, seen.at)
    -- Less in use than expected may be what another replica was granted and has not sent yet, or what it has got back and has not
    -- told yet. What is really free shows in every header, so an eighth at a time is enough.
    if error < 0 then error = math.ceil(math.min(0, error + seen.uncertain) / 8) end
    quota.tat, quota.corrections, quota.newest = quota.tat + error, quota.corrections + error, seen.position
  end
  update = update or cell.settled ~= 0 or seen
  if cell.units > 0 then
    local first = math.ceil(ahead * cell.whole / 1000000)
    wait = math.max(wait, math.max(quota.tat, now) + first + cell.units + cell.margin - cell.whole - now)
    share = math.max(share, math.ceil(cell.units * 1000000 / cell.whole))
  end
  quotas[i] = quota
end

-- All dimensions or none; and where there is not room for all of them, nobody passes a replica that waits.
local granted = request.asks and wait <= 0
if granted then position = position + 1 end
local stays = request.waiting > (granted and 1 or 0)
if place and (granted or not stays) then table.remove(waiting, place) end
if stays and request.asks and (granted or not place) then waiting[#waiting + 1] = { name = replica, at = now } end
for _, other in ipairs(waiting) do if other.name == replica and request.asks then other.share = share end end
if waiting[1] and (waiting[1].name ~= before or waiting[1].name == replica) then waiting[1].at = now end
local places, shares = {}, {}
for at, other in ipairs(waiting) do
  shares[at] = other.name .. ':' .. text(other.share)
  places[at] = shares[at] .. ':' .. text(other.at)
end
update = update or (waiting[1] and waiting[1].name) ~= before or (granted and #waiting > 0)

-- The newest statement of every limit, and the largest answer of every key (E:KEY=TOKENS:ENDED) for as long as it may count.
local learnt, terms = {}, {}
for name, term in string.gmatch((head[5] or '') .. ' ' .. request.learnt, '(%S+)=(%S+)') do learnt[name] = term end
for name, term in pairs(learnt) do
  local ended = string.match(name, '^E:') and tonumber(string.match(term, ':(%d+)$'))
  if not ended or ended + 600000000 > now then terms[#terms + 1] = name .. '=' .. term end
end
table.sort(terms)
learnt = table.concat(terms, ' ')
update = update or learnt ~= (head[5] or '')

version = version + 1
local fields = { 'epoch', text(epoch), 'version', text(version), 'position', text(position), 'waiting', table.concat(places, ' '), 'learnt', learnt }
local reply = { text(now), text(epoch), text(version), text(position), granted and '1' or '0', text(wait), table.concat(shares, ' '), learnt }
local longest, outstanding = 0, {}
for i, cell in ipairs(request.cells) do
  local quota, taken = quotas[i], granted and cell.units or 0
  if taken > 0 then quota.tat = math.max(quota.tat, now) + taken end
  for name, value in pairs({ t = quota.tat, c = quota.corrections, n = quota.newest }) do
    fields[#fields + 1] = name .. ':' .. cell.code
    fields[#fields + 1] = text(value)
  end
  for _, value in ipairs({ cell.code, text(quota.tat), text(quota.corrections), text(quota.newest) }) do
    reply[#reply + 1] = value
  end
  longest = math.max(longest, quota.tat - now)
  -- What comes back should this replica fall silent.
  if cell.outstanding + taken > 0 then
    outstanding[#outstanding + 1] = cell.code .. ':' .. text(cell.outstanding + taken) .. ':' .. text(quota.corrections)
  end
end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('PEXPIRE', KEYS[1], text(longest / 1000 + 600000))
redis.call('SET', KEYS[2], table.concat(outstanding, ' '), 'PX', '3600000')
if update then redis.call('PUBLISH', ARGV[2], KEYS[1] .. ' ' .. cjson.encode(reply)) end
return reply
